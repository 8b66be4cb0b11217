"""Random SAEs of dictionary_learning."""

import json
from pathlib import Path
from typing import Any

import torch
from foreign import randomise
from peers import stand_in_for_nnsight

D_IN, D_SAE, K = 16, 64, 5
# by class: its module and its arguments
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "AutoEncoder": ("dictionary", {}),
    "AutoEncoderNew": ("dictionary", {}),
    "GatedAutoEncoder": ("dictionary", {}),
    "JumpReluAutoEncoder": ("dictionary", {}),
    "AutoEncoderTopK": ("trainers.top_k", {"k": K}),
    "BatchTopKSAE": ("trainers.batch_top_k", {"k": K}),
    "MatryoshkaBatchTopKSAE": ("trainers.matryoshka_batch_top_k", {"k": K, "group_sizes": [16, 48]}),
}


def make(kind: str, d_in: int = D_IN, d_sae: int = D_SAE) -> Any:
    import importlib

    stand_in_for_nnsight()
    module, arguments = CASES[kind]
    if "group_sizes" in arguments:
        arguments = {**arguments, "group_sizes": [d_sae // 4, d_sae - d_sae // 4]}
    cls = getattr(importlib.import_module(f"dictionary_learning.{module}"), kind)
    made = cls(activation_dim=d_in, dict_size=d_sae, **arguments)
    randomise(made)
    if "k" in arguments:
        made.threshold.fill_(0.6)
    return made


def save(module: Any, path: Path, kind: str | None, **trainer: Any) -> Path:
    """Write the files of its training loop: ae.pt and, if `kind` is given, config.json."""
    path.mkdir(exist_ok=True)
    torch.save(module.state_dict(), path / "ae.pt")
    if kind is not None:
        config = {"dict_class": kind, "lm_name": "tiny", "submodule_name": "layers.1", "layer": 1, **trainer}
        (path / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"ctx_len": 128}}))
    return path
