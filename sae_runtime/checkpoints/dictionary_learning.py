"""dictionary_learning: ae.pt and config.json; snapshots (`checkpoints/ae_100.pt`) and nested backups too.

The formulas are those of `dictionary_learning/dictionary.py` and `trainers/*.py`, release 0.1.0 and git of 2025.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.fitted_on import plain
from sae_runtime.checkpoints.folder import Config, config_of, find, home
from sae_runtime.checkpoints.stored import Double, Stored, Tensors
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

CFG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_PLAIN = ("W_enc", "b_enc", "W_dec")  # the same tensors under the other names that files use; matrices are transposed
# The tensors by which a class is recognised; AutoEncoderTopK and BatchTopKSAE have the same.
_TENSORS = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
    "JumpReluAutoEncoder": (*_PLAIN, "b_dec", "threshold"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec", "k", "threshold"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": (*_PLAIN, "b_dec", "k", "threshold", "group_sizes"),
}
_MAY_LACK = ("k", "threshold")  # of the classes of top-k: old files keep k in config.json, and have no threshold
ARCHITECTURES = tuple(_TENSORS)
# The class that a trainer fits; the first releases wrote no dict_class.
_TRAINERS = {
    "AutoEncoder": ("StandardTrainer", "StandardTrainerAprilUpdate", "PAnnealTrainer"),
    "GatedAutoEncoder": ("GatedSAETrainer", "GatedAnnealTrainer"),
    "JumpReluAutoEncoder": ("JumpReluTrainer", "TrainerJumpRelu"),
    "AutoEncoderTopK": ("TopKTrainer", "TrainerTopK"),
    "BatchTopKSAE": ("BatchTopKTrainer", "TrainerBatchTopK"),
    "MatryoshkaBatchTopKSAE": ("MatryoshkaBatchTopKTrainer", "TrainerMatryoshkaBatchTopK"),
}
_RECORDED = ("io", "ctx_len", "remove_bos", "add_special_tokens", "max_activation_norm_multiple")
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
    return bool(_fitting(set(_state(read_torch(file)))))


def read(path: Path) -> Checkpoint:
    """The SAE in a folder or file of dictionary_learning.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged or incomplete, or `manifest.Architecture` cannot describe what it computes.
    """
    file, cfg = _weights_file(path), _config(path)
    if file is None:
        raise ValueError(f"{path} holds no {WEIGHTS}, which dictionary_learning writes; name the file")
    whole = read_torch(file)
    tensors = tensors_of(file, _state(whole))
    cfg = cfg or Config(file, {})
    trainer, buffer = cfg.inner("trainer"), cfg.inner("buffer")
    kind, factor = _kind(tensors, trainer), _norm_factor(file, whole)
    w_enc = tensors.either("W_enc", "encoder.weight")
    d_in, d_sae = w_enc.shape
    w_dec = tensors.either("W_dec", "decoder.weight", d_sae, d_in)

    warnings = []
    threshold: Double | float | None = None
    b_enc: Double
    if kind == "GatedAutoEncoder":
        gate, mag = (tensors.vector(name, d_sae) * factor for name in ("gate_bias", "mag_bias"))
        w_enc, b_enc, threshold = folding.gated(w_enc, gate, mag, tensors.vector("r_mag", d_sae))
    else:
        b_enc = tensors.vector(tensors.first("encoder.bias", "b_enc"), d_sae) * factor
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        threshold = 0.0
    if kind == "AutoEncoder" and not np.allclose(w_dec.row_norms(), 1):  # its from_pretrained does the same
        w_enc, b_enc, w_dec = folding.unit_decoder(w_enc, b_enc, w_dec)
        warnings.append(
            "Decoder rows are given length 1 and features grow by it, as the library does when it loads it."
        )
    if kind == "JumpReluAutoEncoder":
        threshold = tensors.vector("threshold", d_sae) * factor
    if kind in _BATCH:
        cut = tensors.scalar("threshold") if "threshold" in tensors else -1.0
        threshold = None if cut < 0 else cut * factor  # -1 means unset
        warnings += _threshold_warnings(cut, trainer)
    b_dec = tensors.vector(_DECODER_BIAS.get(kind, "b_dec"), d_in) * factor
    side = buffer.choice("io", ("in", "out", "in_and_out"), "out")
    pre_bias, transcoder, hook = (
        kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        side == "in_and_out",
        _hook(trainer),
    )
    if transcoder and pre_bias:
        b_enc, pre_bias = b_enc - w_enc.times(b_dec), False
    provenance = {key: trainer.fields[key] for key in ("trainer_class", "layer", "steps") if _simple(trainer, key)}
    if buffer.fields:
        provenance["fitted_on"] = {key: plain(value) for key, value in buffer.fields.items() if key in _RECORDED}
    return assemble(
        file,
        kind,
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        threshold=threshold,
        selection="topk" if kind == "AutoEncoderTopK" else "threshold",
        k=_k(tensors, trainer) if "k" in _TENSORS[kind] else None,
        pre_bias=pre_bias,
        transcoder=transcoder,
        model=trainer.maybe_text("lm_name"),
        hook=f"input:{hook}" if hook is not None and side != "out" else hook,
        hook_out=hook if transcoder else None,
        provenance=provenance,
        warnings=tuple(warnings),
    )


def _hook(trainer: Config) -> str | None:
    """The hook that submodule_name names; the library's own runs write `resid_post_layer_8` for block 8's output."""
    name = trainer.maybe_text("submodule_name")
    layer = re.fullmatch(r"resid_post_layer_(\d+)", name or "")
    return name if layer is None else f"blocks.{layer[1]}.hook_resid_post"


def _weights_file(path: Path) -> Path | None:
    if path.is_file():
        return find(path, path.name) if path.suffix == ".pt" else None
    return find(path, WEIGHTS)


def _config(path: Path) -> Config | None:
    """config.json beside the weights; of a snapshot, the one beside its folder `checkpoints`."""
    cfg = config_of(path, CFG)
    if cfg is None and home(path).name == "checkpoints":
        return config_of(home(path).parent, CFG)
    return cfg


def _state(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict. A backup has it under `ae`, beside the state of the optimizer."""
    inner = whole.get("ae")
    return inner if isinstance(inner, dict) else whole


def _norm_factor(file: Path, whole: Mapping[str, Any]) -> float:
    """The factor of a backup's biases. The library multiplies them by it before it saves a final file."""
    factor = whole.get("norm_factor")
    if not isinstance(whole.get("ae"), dict) or factor is None:
        return 1.0
    if isinstance(factor, Stored):
        factor = Tensors(file, {"norm_factor": factor}).scalar("norm_factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise ValueError(f"{file}: norm_factor is {str(factor)[:40]}, expected a positive number")
    return float(factor)


def _fitting(names: set[str]) -> list[str]:
    """The classes that have these tensors."""
    return [kind for kind, own in _TENSORS.items() if _required(kind) <= names <= set(own)]


def _required(kind: str) -> set[str]:
    return {*_TENSORS[kind]} - set(_MAY_LACK if "k" in _TENSORS[kind] else ())


def _kind(tensors: Tensors, trainer: Config) -> str:
    names = tensors.names()
    trained = trainer.fields.get("trainer_class")
    by_trainer = next((kind for kind, classes in _TRAINERS.items() if trained in classes), None)
    if "dict_class" in trainer or by_trainer is not None:
        kind = trainer.choice("dict_class", ARCHITECTURES, by_trainer)
        known = {*_TENSORS[kind]}
        other = dict(zip((*_LINEAR, *_PLAIN), (*_PLAIN, *_LINEAR), strict=True))
        tensors.refuse_others(*known, *(other[name] for name in known if name in other))
        return kind
    fitting = _fitting(names)
    if not fitting:
        raise ValueError(f"{tensors.file} holds {', '.join(sorted(names)[:8])}, the tensors of no known class")
    if len(fitting) > 1:
        raise ValueError(
            f"{tensors.file} is an {' or a '.join(fitting)}, which only {CFG} tells; put it beside the weights"
        )
    return fitting[0]


def _k(tensors: Tensors, trainer: Config) -> int:
    if "k" not in tensors:
        return trainer.size("k")
    k = tensors.scalar("k")
    if k != int(k):
        raise ValueError(f"{tensors.file}: k is {k:g}, expected a whole number; get a sound copy")
    if "k" in trainer and trainer.integer("k") != k:
        raise ValueError(f"{tensors.file}: k is {k:g}, but {trainer.file} says {trainer.integer('k')}")
    return int(k)


def _threshold_warnings(cut: float, trainer: Config) -> list[str]:
    """Warnings about a threshold. It is a running mean over 1 / (1 - beta) steps that begins late in a run."""
    if cut < 0:
        return ["Its threshold was never set, so that the library keeps every feature; run sae-runtime calibrate."]
    if "steps" not in trainer:
        return []
    steps = trainer.integer("steps") - trainer.integer("threshold_start_step", 1000)
    if steps >= 3 / max(1 - trainer.number("threshold_beta", 0.999), 1e-9):
        return []
    return [
        f"Its threshold is a running mean over only {max(steps, 0):,} steps, in which the first of them still weigh; "
        "run sae-runtime calibrate."
    ]


def _simple(trainer: Config, key: str) -> bool:
    value = trainer.fields.get(key)
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"[\w.-]{1,80}", value) is not None)
