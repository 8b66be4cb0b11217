"""Files of Llama Scope and Llamascopium, and the SAEs that the loaders of SAELens make from them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

HOOK = "blocks.3.hook_resid_post"
AVERAGE = 2.5  # average length of activations
NORM = "dataset_average_activation_norm"


def weights(*, unit: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"encoder.weight": (64, 16), "encoder.bias": (64,), "decoder.weight": (16, 64), "decoder.bias": (16,)}
    state = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    if unit:
        state["decoder.weight"] /= state["decoder.weight"].norm(dim=0)
    return state


def save_first(home: Path, state: dict[str, Tensor], **cfg: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "d_model": 16,
        "d_sae": 64,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.53,
        "norm_activation": "dataset-wise",
        NORM: {"in": AVERAGE, "out": AVERAGE},
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "top_k": 5,
        **cfg,
    }
    (home / "checkpoints").mkdir(parents=True)
    safetensors.torch.save_file(state, home / "checkpoints" / "final.safetensors")
    (home / "hyperparams.json").write_text(json.dumps(config))
    return config


def save_second(home: Path, state: dict[str, Tensor], **cfg: Any) -> dict[str, Any]:
    config = {"sae_type": "sae", "d_model": 16, "expansion_factor": 4, "hook_point_in": HOOK, "hook_point_out": HOOK}
    config |= {"act_fn": "jumprelu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True, **cfg}
    home.mkdir()
    safetensors.torch.save_file(state, home / "sae_weights.safetensors")
    (home / "config.json").write_text(json.dumps(config))
    return config


def sae_lens_sae(monkeypatch: pytest.MonkeyPatch, home: Path, loader: str) -> Any:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def fetch(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        return str(home.parent / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    cfg, state, _ = getattr(loaders, loader)("fnlp/Llama", home.name, "cpu", False, {"dtype": "float32"})
    sae = JumpReLUSAE(JumpReLUSAEConfig.from_dict(loaders.handle_config_defaulting(cfg)))
    sae.load_state_dict(state)
    sae.fold_activation_norm_scaling_factor(
        math.sqrt(16) / AVERAGE
    )  # from_pretrained does the same, with an average of its list
    return sae
