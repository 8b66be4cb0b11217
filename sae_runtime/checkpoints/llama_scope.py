"""Llama Scope (hyperparams.json, checkpoints/final.safetensors), Llamascopium (config.json, sae_weights.safetensors).

The mathematics is that of OpenMOSS/Language-Model-SAEs: activations are scaled to an average length of sqrt(d_in) by a
number in the files (`dataset-wise`), and selection may multiply features by the lengths of their decoder rows.
The threshold of Llama Scope, one number, is for unscaled activations, as in SAELens and in the library's inference
mode; those of Llamascopium, one per feature, are for scaled activations, on which they were fitted.
"""

import math
from pathlib import Path

import numpy as np

from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.checkpoint import Checkpoint, gather
from sae_runtime.checkpoints.folder import Config, config_of, find, has
from sae_runtime.checkpoints.safetensors_file import open_safetensors
from sae_runtime.checkpoints.stored import Double, Stored, Tensors

FIRST = ("hyperparams.json", "checkpoints/final.safetensors")
SECOND = ("config.json", "sae_weights.safetensors")
ARCHITECTURES = ("relu", "jumprelu", "topk", "batchtopk")
_AVERAGE = "dataset_average_activation_norm"
_NAMES = {
    "W_enc": ("W_E", "encoder.weight"),
    "b_enc": ("b_E", "encoder.bias"),
    "W_dec": ("W_D", "decoder.weight"),
    "b_dec": ("b_D", "decoder.bias"),
    "threshold": ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"),
}


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of Llama Scope or Llamascopium."""
    return has(path, *FIRST) or has(path, *SECOND)


def read(path: Path) -> Checkpoint:
    """The SAE in a folder of Llama Scope or Llamascopium.

    Raises:
        ValueError: it is damaged, incomplete, or computes what `manifest.Architecture` cannot.
    """
    names = FIRST if find(path, FIRST[0]) is not None else SECOND
    cfg, file = config_of(path, names[0]), find(path, names[1])
    if cfg is None or file is None:
        raise ValueError(f"{path} lacks {names[0]} or {names[1]}, which Llama Scope comes as; get the whole folder")
    if (kind := cfg.text("sae_type", "sae")) not in ("sae", "sparse_autoencoder"):
        raise ValueError(
            f"{cfg.file}: sae_type is {kind}; crosscoders, CLT, Lorsa and MOLT cannot be served, only sae can"
        )
    if cfg.flag("use_glu_encoder", False):
        raise ValueError(f"{cfg.file}: use_glu_encoder multiplies features by a second encoder, which cannot be served")
    activation = cfg.text("act_fn", None if names is FIRST else "relu")
    if activation not in ARCHITECTURES:
        raise ValueError(f"{cfg.file}: act_fn is {activation}, expected one of {', '.join(ARCHITECTURES)}")
    tensors = open_safetensors(file)
    w_enc, w_dec = _matrices(tensors, cfg.size("d_model"))
    d_in, d_sae = w_enc.shape
    b_enc = tensors.vector(_name(tensors, "b_enc"), d_sae)
    b_dec = tensors.vector(_name(tensors, "b_dec"), d_in) if cfg.flag("use_decoder_bias", True) else np.zeros(d_in)
    hook, hook_out = cfg.text("hook_point_in"), cfg.text("hook_point_out", cfg.text("hook_point_in"))
    transcoder = hook != hook_out
    norm, scale_in, scale_out = _scales(cfg, tensors, hook, hook_out)
    if transcoder and norm != "none":
        raise ValueError(f"{cfg.file}: a transcoder with token-wise norms undoes the norm of an output it does not see")
    pre_bias = cfg.flag("apply_decoder_bias_to_pre_encoder", False)
    if pre_bias and (transcoder or scale_in != scale_out):
        b_enc, pre_bias = folding.pre_bias(w_enc, b_enc, b_dec), False

    warnings: list[str] = []
    threshold, counts_lengths = None, cfg.flag("sparsity_include_decoder_norm", True)
    if activation == "relu":
        threshold = np.zeros(d_sae)
    elif activation == "jumprelu":
        threshold = _threshold(cfg, tensors, w_dec, scale_in, first=names is FIRST)
        if names is FIRST and counts_lengths and not np.allclose(w_dec.row_norms(), 1, atol=0.02):
            warnings.append("Decoder rows are not of length 1; like SAELens, the threshold does not look at them.")
    elif counts_lengths:
        w_enc, b_enc, w_dec, _ = folding.decoder_lengths(w_enc, b_enc, w_dec)
        warnings.append("Features are given times the lengths of their decoder rows, by which they are selected.")
    k = cfg.size("top_k") if activation in ("topk", "batchtopk") else None
    if activation == "batchtopk":
        warnings.append("It knows only its batch rule; run sae-runtime calibrate.")
    tensors.refuse_others(
        *(name for names in _NAMES.values() for name in names),
        *(f"{_AVERAGE}.{place}" for place in (hook, hook_out, "in", "out")),
    )
    topk = activation == "topk"
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection="topk" if topk else "threshold",
            k=k if topk else None,
            pre_bias=pre_bias,
            norm=norm,
            d_out=d_in if transcoder else None,
        ),
        weights=gather(
            file,
            w_enc=w_enc.scaled(scale_in),
            b_enc=b_enc,
            w_dec=w_dec.scaled(1 / scale_out),
            b_dec=b_dec / scale_out,
            threshold=threshold,
        ),
        file=file,
        source_format=activation,
        allocation=None if k is None else Allocation(kind="token" if topk else "mutual", k=float(k)),
        hook=hook,
        hook_out=hook_out if transcoder else None,
        provenance={"input_scale": scale_in},
        warnings=tuple(warnings),
    )


def _name(tensors: Tensors, ours: str) -> str:
    """The name that a tensor has in this file; the newest name if it is missing."""
    return next((name for name in _NAMES[ours] if name in tensors), _NAMES[ours][0])


def _matrices(tensors: Tensors, d_in: int) -> tuple[Stored, Stored]:
    """W_enc [d_in, d_sae] and W_dec [d_sae, d_in]."""
    if "encoder.weight" in tensors:
        w_enc = tensors.matrix("encoder.weight", None, d_in).T
        return w_enc, tensors.matrix("decoder.weight", d_in, w_enc.shape[1]).T
    w_enc = tensors.matrix("W_E", d_in)
    return w_enc, tensors.matrix("W_D", w_enc.shape[1], d_in)


def _scales(cfg: Config, tensors: Tensors, hook: str, hook_out: str) -> tuple[str, float, float]:
    """The norm of each token, and the factors on activations and on reconstructions."""
    kind = cfg.text("norm_activation", "dataset-wise")
    if kind == "inference":
        return "none", 1.0, 1.0
    if kind == "token-wise":
        return "length", 1.0, 1.0
    if kind != "dataset-wise":
        raise ValueError(f"{cfg.file}: norm_activation is {kind}, which lets tokens of a batch depend on each other")
    averages = cfg.inner(_AVERAGE)
    scales = []
    for side, place in (("in", hook), ("out", hook_out)):
        if side in averages or place in averages:
            average = averages.number(side if side in averages else place)
        else:
            average = tensors.scalar(f"{_AVERAGE}.{place}")
        if average <= 0:
            raise ValueError(f"{cfg.file}: {_AVERAGE} of {place} is {average:g}, expected a positive number")
        scales.append(math.sqrt(cfg.size("d_model")) / average)
    return "none", scales[0], scales[1]


def _threshold(cfg: Config, tensors: Tensors, w_dec: Stored, scale: float, *, first: bool) -> Double:
    d_sae = w_dec.shape[0]
    if first:
        return np.full(d_sae, cfg.number("jump_relu_threshold") * scale)
    threshold: Double = np.exp(tensors.vector(_name(tensors, "threshold"), d_sae))
    if not cfg.flag("sparsity_include_decoder_norm", True):
        return threshold
    lengths = w_dec.row_norms()
    if not lengths.all():
        raise ValueError(
            f"{w_dec.file}: {w_dec.name} is 0 for feature {int(np.argmin(lengths))}, which is never active"
        )
    return threshold / lengths
