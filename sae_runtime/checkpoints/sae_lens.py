"""SAELens: cfg.json and sae_weights.safetensors, of any release; training checkpoints too.

The mathematics is that of SAELens 6.54 (`sae_lens/saes`), which also says how older configurations are read.
"""

import re
from pathlib import Path

import numpy as np

from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.bundle.sae_lens_cfg import CFG, NORMS
from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.checkpoint import Checkpoint, gather
from sae_runtime.checkpoints.folder import Config, config_of, find, has
from sae_runtime.checkpoints.safetensors_file import open_safetensors
from sae_runtime.checkpoints.stored import Double, Stored, Tensors

WEIGHTS = "sae_weights.safetensors"
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", *_BATCH, *_TRANSCODERS)
_UNFIT = {
    "abstopk": "it keeps negative features",
    "matching_pursuit": "it encodes in steps that depend on each other",
    "temporal": "it reads other tokens than its own",
}
_AVERAGE = "expected_average_only_in"  # a scalar on the input, which is folded into the weights
_NORMS = {**NORMS, _AVERAGE: "none"}


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of SAELens."""
    return has(path, CFG, WEIGHTS)


def read(path: Path) -> Checkpoint:
    """The SAE in a folder of SAELens.

    Raises:
        ValueError: it is damaged, incomplete, or computes what `manifest.Architecture` cannot.
    """
    cfg, file = config_of(path, CFG), find(path, WEIGHTS)
    if cfg is None or file is None:
        raise ValueError(f"{path} lacks {CFG} or {WEIGHTS}, which SAELens writes; get the whole folder")
    metadata = cfg.inner("metadata")
    version = metadata.maybe_text("sae_lens_version") or cfg.maybe_text("sae_lens_version")
    old = version is None or _numbers(version) < (6,)
    form = _architecture(cfg, old=old)
    norm, warnings = _norm(cfg), []
    if norm == "covariance_whitening":
        raise ValueError(
            f"{cfg.file}: normalize_activations {norm} is not folded in yet; convert the final save instead"
        )
    if norm not in _NORMS:
        raise ValueError(f"{cfg.file}: normalize_activations is {norm}, expected one of {', '.join(_NORMS)}")
    tensors = open_safetensors(file)
    d_in, d_sae = cfg.size("d_in"), cfg.size("d_sae")
    transcoder = form in _TRANSCODERS
    if transcoder and _NORMS[norm] != "none":
        raise ValueError(f"{cfg.file}: a transcoder with normalize_activations {norm} gives nothing that undoes it")
    pre_bias = cfg.flag("apply_b_dec_to_input", True)
    if transcoder and pre_bias:
        raise ValueError(f"{cfg.file}: a transcoder cannot have apply_b_dec_to_input, as SAELens says too")
    d_out = cfg.size("d_out") if transcoder else d_in
    skip = "skip" in form

    w_enc, w_dec = tensors.matrix("W_enc", d_in, d_sae), tensors.matrix("W_dec", d_sae, d_out)
    b_dec = tensors.vector("b_dec", d_out)
    rescale = form in ("topk", *_BATCH) and cfg.flag("rescale_acts_by_decoder_norm", False)
    threshold = _threshold(tensors, form, d_sae)
    if norm == _AVERAGE:
        scale, warning = _input_scale(path)
        warnings.append(warning)
        w_enc, w_dec, b_dec = w_enc.scaled(scale), w_dec.scaled(1 / scale), b_dec / scale
        if rescale and threshold is not None:
            threshold = threshold / scale  # it applies to decoder lengths, which are divided too
    b_enc: Double
    if form == "gated":
        gates = [tensors.vector(name, d_sae) for name in ("b_gate", "b_mag", "r_mag")]
        w_enc, b_enc, threshold = folding.gated(w_enc, *gates)
    else:
        b_enc = tensors.vector("b_enc", d_sae)
    if rescale:
        w_enc, b_enc, w_dec, _ = folding.decoder_lengths(w_enc, b_enc, w_dec)
    w_skip: Stored | None = tensors.matrix("W_skip", d_out, d_in) if skip else None
    _refuse_unknown(tensors, form, skip=skip)

    k = None
    allocation = None
    if form == "topk":
        k = cfg.inner("activation_fn_kwargs").size("k") if old and "activation_fn_kwargs" in cfg else cfg.size("k")
        allocation = Allocation(kind="token", k=float(k))
    elif form in _BATCH:
        allocation = Allocation(kind="mutual", k=cfg.number("k"))
        warnings.append(_mid_run(threshold))
    warnings += _dubious_threshold(path, cfg, version)
    hook = metadata.maybe_text("hook_name") or cfg.maybe_text("hook_name") or cfg.maybe_text("hook_point")
    reshape = cfg.text("reshape_activations", "hook_z" if old and "hook_z" in (hook or "") else "none")
    if reshape not in ("none", "hook_z"):
        raise ValueError(f"{cfg.file}: reshape_activations is {reshape}, expected none or hook_z")
    if reshape == "hook_z":
        warnings.append("It reads attention heads side by side: give it activations [tokens, heads * d_head].")
    origin = {key: metadata.maybe_text(key) for key in ("training_architecture", "hf_hook_name", "hf_hook_name_out")}
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection="threshold" if k is None else "topk",
            k=k,
            pre_bias=pre_bias,
            norm=_NORMS[norm],
            d_out=d_out if transcoder else None,
            skip=skip,
        ),
        weights=gather(file, w_enc=w_enc, b_enc=b_enc, w_dec=w_dec, b_dec=b_dec, threshold=threshold, w_skip=w_skip),
        file=file,
        source_format=form,
        allocation=allocation,
        model=metadata.maybe_text("model_name") or cfg.maybe_text("model_name"),
        hook=hook,
        hook_out=metadata.maybe_text("hook_name_out") or cfg.maybe_text("hook_name_out"),
        provenance={key: value for key, value in {"sae_lens_version": version, **origin}.items() if value},
        warnings=tuple(warnings),
    )


def _architecture(cfg: Config, *, old: bool) -> str:
    form = cfg.text("architecture", "standard" if old else None)
    if old:
        activation = cfg.text("activation_fn_str", cfg.text("activation_fn", "relu"))
        if activation not in ("relu", "topk"):
            raise ValueError(f"{cfg.file}: activation {activation} cannot be served, only relu and topk can")
        if activation == "topk":
            form = "topk"
    if form in _UNFIT:
        raise ValueError(f"{cfg.file}: architecture {form} cannot be served, since {_UNFIT[form]}")
    if form not in ARCHITECTURES:
        raise ValueError(f"{cfg.file}: architecture is {form}, expected one of {', '.join(ARCHITECTURES)}")
    return form


def _norm(cfg: Config) -> str:
    if isinstance(cfg.fields.get("normalize_activations"), bool):  # before 4.0
        return _AVERAGE if cfg.flag("normalize_activations") else "none"
    return cfg.text("normalize_activations", "none")


def _input_scale(path: Path) -> tuple[float, str]:
    """The factor on the input in training, and a warning about it."""
    scaler = config_of(path, "activation_scaler.json")
    if scaler is None or "scaling_factor" not in scaler:
        return 1.0, (
            "It was fitted on activations of another scale, which this folder does not tell; SAELens applies none "
            "either, so multiply activations by the run's scaling factor or convert its final save."
        )
    scale = scaler.number("scaling_factor")
    if scale <= 0:
        raise ValueError(f"{scaler.file}: scaling_factor is {scale}, expected a positive number")
    return scale, f"The run's input scale {scale:.6g} is folded in, as SAELens does in its final save."


def _threshold(tensors: Tensors, form: str, d_sae: int) -> Double | None:
    if form in ("standard", "transcoder", "skip_transcoder"):
        return np.zeros(d_sae)
    if form.startswith("jumprelu"):
        if "log_threshold" in tensors:  # training checkpoints before 6.0
            return np.exp(tensors.vector("log_threshold", d_sae))
        return tensors.vector("threshold", d_sae)
    if form in _BATCH and "topk_threshold" in tensors:
        threshold = tensors.scalar("topk_threshold")
        return np.full(d_sae, threshold) if threshold > 0 else None
    return None


def _refuse_unknown(tensors: Tensors, form: str, *, skip: bool) -> None:
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in tensors and not np.allclose(tensors.vector(name, tensors.matrix("W_dec").shape[0]), 1):
            raise ValueError(f"{tensors.file}: {name} is not 1, and no release says how it is to be applied")
    known = ["W_enc", "W_dec", "b_dec", "scaling_factor", "finetuning_scaling_factor"]
    known += ["b_gate", "b_mag", "r_mag"] if form == "gated" else ["b_enc"]
    if form.startswith("jumprelu"):
        known += ["threshold", "log_threshold"]
    if form in _BATCH:
        known.append("topk_threshold")
    tensors.refuse_others(*known, *(["W_skip"] if skip else []))


def _mid_run(threshold: Double | None) -> str:
    if threshold is None:
        return "It is a checkpoint of a run that had no threshold yet; run sae-runtime calibrate."
    return (
        "It is a checkpoint within a run: its threshold is a running mean that began at 0 and may still be too low; "
        "sae-runtime calibrate measures one."
    )


def _dubious_threshold(path: Path, cfg: Config, version: str | None) -> list[str]:
    """Warnings about a threshold: SAELens before 6.54.12 saved those of BatchTopK runs off by the input scale."""
    trained_as = cfg.inner("metadata").maybe_text("training_architecture")
    if trained_as not in _BATCH or version is None or _numbers(version) >= (6, 54, 12):
        return []
    runner = config_of(path, "runner_cfg.json")
    if runner is not None and _norm(runner.inner("sae")) == "none" and "normalize_activations" in runner.inner("sae"):
        return []
    return [
        f"SAELens {version} saved the threshold of {trained_as} runs with scaled activations and decoder lengths off "
        "by the scale (SAELens#763); compare its L0 with the run's, or run sae-runtime calibrate."
    ]


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (6, 0, 0) of 6.0.0-rc.1."""
    return tuple(int(n) for n in re.match(r"[0-9.]{0,40}", version)[0].split(".") if n)  # type: ignore[index]
