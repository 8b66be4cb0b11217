"""dictionary_learning: ae.pt and config.json; snapshots (`checkpoints/ae_100.pt`) and nested backups too.

The mathematics is that of `dictionary_learning/dictionary.py` and `trainers/*.py`, release 0.1.0 and git of 2025.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.checkpoint import Checkpoint, gather
from sae_runtime.checkpoints.folder import Config, config_of, find, home
from sae_runtime.checkpoints.stored import Double, Stored, Tensors
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

CFG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")
# The tensors by which a class is recognised; AutoEncoderTopK and BatchTopKSAE have the same.
_TENSORS = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
    "JumpReluAutoEncoder": (*_PLAIN, "threshold"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec", "k", "threshold"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": (*_PLAIN, "k", "threshold", "group_sizes"),
}
ARCHITECTURES = tuple(_TENSORS)
_BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_DECODER_BIAS = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files, or the tensors, of dictionary_learning."""
    file = _weights_file(path)
    if file is None:
        return False
    cfg = _config(path)
    if cfg is not None and "trainer" in cfg:
        return True
    return set(_state(read_torch(file))) in map(set, _TENSORS.values())


def read(path: Path) -> Checkpoint:
    """The SAE in a folder or file of dictionary_learning.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged, incomplete, or computes what `manifest.Architecture` cannot.
    """
    file, cfg = _weights_file(path), _config(path)
    if file is None:
        raise ValueError(f"{path} holds no {WEIGHTS}, which dictionary_learning writes; name the file")
    whole = read_torch(file)
    state = _state(whole)
    tensors = tensors_of(file, state)
    trainer = Config(file, {}) if cfg is None else cfg.inner("trainer")
    kind = _kind(tensors, trainer)
    grow = _norm_factor(file, whole)
    w_enc, w_dec = _matrices(tensors)
    (d_in, d_sae), warnings = w_enc.shape, []

    b_dec = tensors.vector(_DECODER_BIAS.get(kind, "b_dec"), d_in) * grow
    threshold: Double | None = None
    b_enc: Double
    if kind == "GatedAutoEncoder":
        gate, mag = (tensors.vector(name, d_sae) * grow for name in ("gate_bias", "mag_bias"))
        w_enc, b_enc, threshold = folding.gated(w_enc, gate, mag, tensors.vector("r_mag", d_sae))
    else:
        b_enc = tensors.vector("b_enc" if "b_enc" in tensors else "encoder.bias", d_sae) * grow
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        threshold = np.zeros(d_sae)
    if kind == "AutoEncoder" and not np.allclose(w_dec.row_norms(), 1):  # its from_pretrained does the same
        w_enc, b_enc, w_dec, _ = folding.decoder_lengths(w_enc, b_enc, w_dec)
        warnings.append(
            "Decoder rows are given length 1 and features grow by it, as the library does when it loads it."
        )
    if kind == "JumpReluAutoEncoder":
        threshold = tensors.vector("threshold", d_sae) * grow
    k = None
    if kind in (*_BATCH, "AutoEncoderTopK"):
        k = _whole(tensors, "k", trainer)
    if kind in _BATCH:
        cut = tensors.scalar("threshold")
        threshold = None if cut < 0 else np.full(d_sae, cut * grow)  # -1 means unset
        warnings += _dubious_threshold(threshold, trainer)
    topk = kind == "AutoEncoderTopK"
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection="topk" if topk else "threshold",
            k=k if topk else None,
            pre_bias=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        ),
        weights=gather(file, w_enc=w_enc, b_enc=b_enc, w_dec=w_dec, b_dec=b_dec, threshold=threshold),
        file=file,
        source_format=kind,
        allocation=None if k is None else Allocation(kind="token" if topk else "mutual", k=float(k)),
        model=trainer.maybe_text("lm_name"),
        hook=trainer.maybe_text("submodule_name"),
        provenance={key: trainer.fields[key] for key in ("trainer_class", "layer", "steps") if _simple(trainer, key)},
        warnings=tuple(warnings),
    )


def _weights_file(path: Path) -> Path | None:
    if path.is_file():
        return find(path, path.name) if path.suffix == ".pt" else None
    return find(path, WEIGHTS)


def _config(path: Path) -> Config | None:
    """config.json beside the weights, or, of a snapshot, beside the folder `checkpoints`."""
    cfg = config_of(path, CFG)
    if cfg is None and home(path).name == "checkpoints":
        return config_of(home(path).parent, CFG)
    return cfg


def _state(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict; a backup has it under `ae`, beside that of the optimizer."""
    inner = whole.get("ae")
    return inner if isinstance(inner, dict) else whole


def _norm_factor(file: Path, whole: Mapping[str, Any]) -> float:
    """The factor for a backup's biases, by which its library multiplies them before it saves a final file."""
    factor = whole.get("norm_factor")
    if not isinstance(whole.get("ae"), dict) or factor is None:
        return 1.0
    if isinstance(factor, Stored):
        factor = Tensors(file, {"norm_factor": factor}).scalar("norm_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise ValueError(f"{file}: norm_factor is {str(factor)[:40]}, expected a positive number")
    return float(factor)


def _kind(tensors: Tensors, trainer: Config) -> str:
    named = trainer.maybe_text("dict_class")
    names = tensors.names()
    # Released files name matrices in either of two ways.
    linear = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
    if named is None:
        fitting = [kind for kind, tensor_names in _TENSORS.items() if set(tensor_names) == names]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ValueError(
                f"{tensors.file} is an {' or a '.join(fitting)}, which only {CFG} tells; put it beside the weights"
            )
        raise ValueError(f"{tensors.file} holds {', '.join(sorted(names)[:8])}, the tensors of no known class")
    if named not in _TENSORS:
        raise ValueError(f"{trainer.file}: dict_class is {named}, expected one of {', '.join(ARCHITECTURES)}")
    other = {name: key for key, name in linear.items()}
    known = set(_TENSORS[named])
    tensors.refuse_others(*known, *(linear.get(name, other.get(name, name)) for name in known))
    return named


def _matrices(tensors: Tensors) -> tuple[Stored, Stored]:
    """W_enc [d_in, d_sae] and W_dec [d_sae, d_in]."""
    w_enc = tensors.matrix("W_enc") if "W_enc" in tensors else tensors.matrix("encoder.weight").T
    d_in, d_sae = w_enc.shape
    if "W_dec" in tensors:
        return w_enc, tensors.matrix("W_dec", d_sae, d_in)
    return w_enc, tensors.matrix("decoder.weight", d_in, d_sae).T


def _whole(tensors: Tensors, name: str, trainer: Config) -> int:
    value = tensors.scalar(name)
    if value != int(value):
        raise ValueError(f"{tensors.file}: {name} is {value:g}, expected a whole number; get a sound copy")
    if name in trainer and trainer.integer(name) != value:
        raise ValueError(f"{tensors.file}: {name} is {value:g}, but {trainer.file} says {trainer.integer(name)}")
    return int(value)


def _dubious_threshold(threshold: Double | None, trainer: Config) -> list[str]:
    """Warnings about a threshold: a running mean over 1 / (1 - beta) steps that begins late in a run."""
    if threshold is None:
        return ["Its threshold was never set, so that the library keeps every feature; run sae-runtime calibrate."]
    if "steps" not in trainer:
        return []
    begun = trainer.integer("steps") - trainer.integer("threshold_start_step", 1000)
    memory = 1 / max(1 - trainer.number("threshold_beta", 0.999), 1e-9)
    if begun >= 3 * memory:
        return []
    return [
        f"Its threshold is a running mean over only {max(begun, 0):,} steps, which the first of them still weighs on; "
        "run sae-runtime calibrate."
    ]


def _simple(trainer: Config, key: str) -> bool:
    value = trainer.fields.get(key)
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"[\w.-]{1,80}", value) is not None)
