"""Llama Scope (hyperparams.json, checkpoints/final.safetensors), Llamascopium (config.json, sae_weights.safetensors).

The formulas are those of OpenMOSS/Language-Model-SAEs: activations are scaled to an average length of sqrt(d_in) by a
number in the files (`dataset-wise`), and selection may multiply features by the lengths of their decoder rows.
Llama Scope has one threshold, for unscaled activations, as in SAELens and in the library's inference mode.
Llamascopium has one threshold for each feature, for the scaled activations on which it was fitted.
"""

import math
from pathlib import Path

import numpy as np

from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.folder import Config, config_and_weights, find, has
from sae_runtime.checkpoints.safetensors_file import open_safetensors
from sae_runtime.checkpoints.stored import Double, Tensors

FIRST = ("hyperparams.json", "checkpoints/final.safetensors")
SECOND = ("config.json", "sae_weights.safetensors")
ARCHITECTURES = ("relu", "jumprelu", "topk", "batchtopk")
_AVERAGE = "dataset_average_activation_norm"
_LOG_THRESHOLD = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of Llama Scope or Llamascopium."""
    return has(path, *FIRST) or has(path, *SECOND)


def read(path: Path) -> Checkpoint:
    """The SAE in a folder of Llama Scope or Llamascopium.

    Raises:
        ValueError: it is damaged or incomplete, or `manifest.Architecture` cannot describe what it computes.
    """
    first = find(path, FIRST[0]) is not None
    cfg, file = config_and_weights(path, *(FIRST if first else SECOND), "Llama Scope")
    if (kind := cfg.text("sae_type", "sae")) not in ("sae", "sparse_autoencoder"):
        raise ValueError(
            f"{cfg.file}: sae_type is {kind}; crosscoders, CLT, Lorsa and MOLT cannot be served, only sae can"
        )
    if cfg.flag("use_glu_encoder", False):
        raise ValueError(f"{cfg.file}: use_glu_encoder multiplies features by a second encoder, which cannot be served")
    activation = cfg.choice("act_fn", ARCHITECTURES, None if first else "relu")
    tensors = open_safetensors(file)
    w_enc = tensors.either("W_E", "encoder.weight", cfg.size("d_model"))
    d_in, d_sae = w_enc.shape
    w_dec = tensors.either("W_D", "decoder.weight", d_sae, d_in)
    b_enc = tensors.vector(tensors.first("b_E", "encoder.bias"), d_sae)
    biased = cfg.flag("use_decoder_bias", True)
    b_dec = tensors.vector(tensors.first("b_D", "decoder.bias"), d_in) if biased else np.zeros(d_in)
    hook, hook_out = cfg.text("hook_point_in"), cfg.text("hook_point_out", cfg.text("hook_point_in"))
    transcoder = hook != hook_out
    norm, scale_in, scale_out = _scales(cfg, tensors, hook, hook_out)
    if transcoder and norm != "none":
        raise ValueError(f"{cfg.file}: a transcoder with token-wise norms undoes the norm of an output it does not see")
    pre_bias = cfg.flag("apply_decoder_bias_to_pre_encoder", False)
    if pre_bias and (transcoder or scale_in != scale_out):
        b_enc, pre_bias = b_enc - w_enc.times(b_dec), False

    warnings: list[str] = []
    threshold: Double | float | None = None
    by_length = cfg.flag("sparsity_include_decoder_norm", True)  # selection multiplies features by decoder lengths
    if activation == "relu":
        threshold = 0.0
    elif activation == "jumprelu" and first:
        threshold = cfg.number("jump_relu_threshold") * scale_in
        if by_length and not np.allclose(w_dec.row_norms(), 1, atol=0.02):
            warnings.append("Decoder rows are not of length 1; as in SAELens, the threshold ignores their lengths.")
    elif activation == "jumprelu":
        threshold = np.exp(tensors.vector(tensors.first(*_LOG_THRESHOLD), d_sae))
        if by_length:
            threshold = threshold / folding.decoder_lengths(w_dec)
    elif by_length:
        w_enc, b_enc, w_dec = folding.unit_decoder(w_enc, b_enc, w_dec)
        warnings.append("Features are multiplied by the lengths of their decoder rows, by which they are selected.")
    if activation == "batchtopk":
        warnings.append("It knows only its batch rule; run sae-runtime calibrate.")
    tensors.refuse_others(
        *("W_E", "b_E", "W_D", "b_D", "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
        *_LOG_THRESHOLD,
        *(f"{_AVERAGE}.{name}" for name in (hook, hook_out, "in", "out")),
    )
    return assemble(
        file,
        activation,
        w_enc=w_enc.scaled(scale_in),
        b_enc=b_enc,
        w_dec=w_dec.scaled(1 / scale_out),
        b_dec=b_dec / scale_out,
        threshold=threshold,
        selection="topk" if activation == "topk" else "threshold",
        k=cfg.size("top_k") if activation in ("topk", "batchtopk") else None,
        pre_bias=pre_bias,
        norm=norm,
        transcoder=transcoder,
        hook=hook,
        hook_out=hook_out if transcoder else None,
        provenance={"input_scale": scale_in},
        warnings=tuple(warnings),
    )


def _scales(cfg: Config, tensors: Tensors, hook: str, hook_out: str) -> tuple[str, float, float]:
    """The norm of `Architecture`, the factor on activations, and the factor that reconstructions are divided by."""
    kind = cfg.text("norm_activation", "dataset-wise")
    if kind == "inference":
        return "none", 1.0, 1.0
    if kind == "token-wise":
        return "length", 1.0, 1.0
    if kind != "dataset-wise":
        raise ValueError(f"{cfg.file}: norm_activation is {kind}, which makes tokens of a batch depend on each other")
    averages = cfg.inner(_AVERAGE)
    scales = []
    for side, name in (("in", hook), ("out", hook_out)):
        if side in averages or name in averages:
            average = averages.number(side if side in averages else name)
        else:
            average = tensors.scalar(f"{_AVERAGE}.{name}")
        if average <= 0:
            raise ValueError(f"{cfg.file}: {_AVERAGE} of {name} is {average:g}, expected a positive number")
        scales.append(math.sqrt(cfg.size("d_model")) / average)
    return "none", scales[0], scales[1]
