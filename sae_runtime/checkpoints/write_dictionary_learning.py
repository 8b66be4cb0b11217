"""A bundle as a folder of dictionary_learning, which its `load_dictionary` and `from_pretrained` open.

The mathematics is that of `dictionary_learning/dictionary.py` and `trainers/*.py`, release 0.1.0.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import extras
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.files import check_free, new_folder
from sae_runtime.bundle.folder import Bundle
from sae_runtime.checkpoints.dictionary_learning import CFG, WEIGHTS
from sae_runtime.checkpoints.outgoing import encoder_bias, refuse_normalised

_UNSET = -1.0  # the threshold of an AutoEncoderTopK without one, which its library does not need
_TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}


def write(bundle_path: Path, out: Path, *, force: bool = False) -> None:
    """Write ae.pt and config.json, with which dictionary_learning computes what the bundle computes as served.

    Token choice becomes an AutoEncoderTopK, and mutual choice of a whole k a BatchTopKSAE with its threshold.
    Thresholds of 0 become an AutoEncoder if the rows of W_dec have length 1, since the library rescales others. All
    other SAEs become a JumpReluAutoEncoder; it has no pre-bias, so b_dec moves into b_enc.

    Args:
        bundle_path: a bundle, exported or not.
        out: the folder to make.
        force: replace what exists there.

    Raises:
        BundleError: the folder is no valid bundle, or has no threshold yet.
        FileExistsError: `out` exists and `force` is not set.
        ImportError: torch is not installed, whose format the file has.
        ValueError: dictionary_learning computes nothing like it; the message says what.
    """
    check_free(out, force=force)
    if "torch" in extras.missing("train"):
        extras.require("train")
    import torch

    bundle = bundles.read(bundle_path)
    _refuse_unlike(bundle)
    manifest, kind = bundle.manifest, _kind(bundle)
    state = {name: torch.from_numpy(np.array(array)) for name, array in _state(bundle, kind).items()}
    trainer: dict[str, Any] = {
        "dict_class": kind,
        "trainer_class": _TRAINERS[kind],
        "activation_dim": manifest.architecture.d_in,
        "dict_size": manifest.architecture.d_sae,
        "lm_name": manifest.model,
        "submodule_name": manifest.hook,
    }
    if "k" in state:
        trainer["k"] = int(state["k"])
    with new_folder(out, force=force) as folder:
        torch.save(state, folder / WEIGHTS)
        (folder / CFG).write_text(json.dumps({"trainer": trainer, "buffer": {}}, indent=4) + "\n")


def _refuse_unlike(bundle: Bundle) -> None:
    architecture = bundle.manifest.architecture
    if architecture.selection == "groupmax":
        raise ValueError(
            f"{bundle.path} keeps the largest of each of {architecture.k} groups, which dictionary_learning does not; "
            "convert it with --to sparsify"
        )
    refuse_normalised(bundle, "dictionary_learning")
    if architecture.d_out is not None or architecture.skip:
        raise ValueError(
            f"{bundle.path} is a transcoder or has a skip, and dictionary_learning knows autoencoders only; "
            "serve the bundle itself, or open it in SAELens"
        )


def _kind(bundle: Bundle) -> str:
    if bundle.manifest.architecture.selection == "topk":
        return "AutoEncoderTopK"
    allocation, threshold = bundle.manifest.allocation, bundle.tensor("threshold")
    if allocation is not None and allocation.kind == "mutual" and threshold.min() == threshold.max():
        if allocation.k == int(allocation.k):  # the library counts whole features
            return "BatchTopKSAE"
    if not threshold.any() and np.allclose(np.linalg.norm(bundle.tensor("W_dec"), axis=1), 1, rtol=5e-6, atol=0):
        return "AutoEncoder"
    return "JumpReluAutoEncoder"


def _state(bundle: Bundle, kind: str) -> dict[str, NDArray[Any]]:
    weights, architecture, allocation = bundle.weights(), bundle.manifest.architecture, bundle.manifest.allocation
    if kind == "JumpReluAutoEncoder":
        names = ("W_enc", "W_dec", "b_dec", "threshold")
        return {"b_enc": encoder_bias(bundle, pre_bias=False), **{name: weights[name] for name in names}}
    state = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": encoder_bias(bundle, pre_bias=True),
        "decoder.weight": weights["W_dec"].T,
        "bias" if kind == "AutoEncoder" else "b_dec": weights["b_dec"],
    }
    if kind == "AutoEncoderTopK":
        state |= {"k": np.array(architecture.k, np.int32), "threshold": np.array(_UNSET, np.float32)}
    if kind == "BatchTopKSAE" and allocation is not None:
        state |= {"k": np.array(int(allocation.k), np.int32), "threshold": weights["threshold"][0]}
    return state
