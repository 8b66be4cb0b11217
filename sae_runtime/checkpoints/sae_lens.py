"""SAELens: cfg.json and sae_weights.safetensors, of any release; training checkpoints too.

The formulas are those of SAELens 6.54 (`sae_lens/saes`), which also tells how to read older configurations.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.sae_lens_cfg import CFG, NORMS
from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.fitted_on import fitted_on, published
from sae_runtime.checkpoints.folder import Config, config_and_weights, config_of, has
from sae_runtime.checkpoints.safetensors_file import open_safetensors
from sae_runtime.checkpoints.stored import Double, Tensors

WEIGHTS = "sae_weights.safetensors"
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", *_BATCH, *_TRANSCODERS)
_UNFIT = {
    "abstopk": "it keeps negative features",
    "matching_pursuit": "it encodes in steps that depend on each other",
    "temporal": "it reads other tokens too",
}
_AVERAGE = "expected_average_only_in"  # a scalar on the input, which is folded into the weights
_NORMS = {**NORMS, _AVERAGE: "none"}
_GATE = ("b_gate", "b_mag", "r_mag")
_NO_THRESHOLD = "It is a checkpoint of a run that had no threshold yet; run sae-runtime calibrate."
_EARLY_THRESHOLD = (
    "It is a checkpoint within a run: its threshold is a running mean that began at 0 and may still be too low; "
    "sae-runtime calibrate measures one."
)


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of SAELens."""
    return has(path, CFG, WEIGHTS)


def read(path: Path) -> Checkpoint:
    """The SAE in a folder of SAELens.

    Raises:
        ValueError: it is damaged or incomplete, or `manifest.Architecture` cannot describe what it computes.
    """
    cfg, file = config_and_weights(path, CFG, WEIGHTS, "SAELens")
    cfg = published(path, cfg)
    metadata = cfg.inner("metadata")
    version = metadata.maybe_text("sae_lens_version") or cfg.maybe_text("sae_lens_version")
    old = version is None or _numbers(version) < (6,)
    form, norm = _architecture(cfg, old=old), _norm(cfg)
    if norm not in _NORMS:
        raise ValueError(
            f"{cfg.file}: normalize_activations is {norm}, expected one of {', '.join(_NORMS)}; of a whitened SAE, "
            "convert the final save"
        )
    tensors = open_safetensors(file)
    d_in, d_sae = cfg.size("d_in"), cfg.size("d_sae")
    transcoder, topk, skip = form in _TRANSCODERS, form == "topk", "skip" in form
    pre_bias = cfg.flag("apply_b_dec_to_input", True)
    if transcoder and _NORMS[norm] != "none":
        raise ValueError(f"{cfg.file}: a transcoder with normalize_activations {norm} gives nothing that undoes it")
    if transcoder and pre_bias:
        raise ValueError(f"{cfg.file}: a transcoder cannot have apply_b_dec_to_input, as SAELens says too")
    d_out = cfg.size("d_out") if transcoder else d_in

    w_enc, w_dec = tensors.matrix("W_enc", d_in, d_sae), tensors.matrix("W_dec", d_sae, d_out)
    b_dec, threshold = tensors.vector("b_dec", d_out), _threshold(tensors, form, d_sae)
    rescale = (topk or form in _BATCH) and cfg.flag("rescale_acts_by_decoder_norm", False)
    source = fitted_on(cfg, _NORMS[norm], transcoder=transcoder)
    w_skip = tensors.matrix("W_skip", d_out, d_in) if skip else None
    warnings = [*source.warnings]
    if norm == _AVERAGE:
        scale, warning = _input_scale(path)
        warnings.append(warning)
        w_enc, w_dec, b_dec = w_enc.scaled(scale), w_dec.scaled(1 / scale), b_dec / scale
        if rescale and threshold is not None:
            threshold = threshold / scale  # it applies to decoder lengths, which are divided too
    b_enc: Double
    if form == "gated":
        w_enc, b_enc, threshold = folding.gated(w_enc, *(tensors.vector(name, d_sae) for name in _GATE))
    else:
        b_enc = tensors.vector("b_enc", d_sae)
    _refuse_unknown(tensors, form, d_sae)
    if rescale:
        w_enc, b_enc, w_dec = folding.unit_decoder(w_enc, b_enc, w_dec)
    if source.centred:
        w_enc, b_enc = folding.without_mean(w_enc, b_enc, b_dec if pre_bias else None)
        pre_bias = False
        if w_skip is not None:
            w_skip = folding.less_mean(w_skip, axis=1)
        elif not transcoder:
            w_skip = folding.mean_of(w_dec)

    k: float | None = None
    if topk:
        k = cfg.inner("activation_fn_kwargs").size("k") if old and "activation_fn_kwargs" in cfg else cfg.size("k")
    elif form in _BATCH:
        k = cfg.number("k")
        warnings.append(_NO_THRESHOLD if threshold is None else _EARLY_THRESHOLD)
    warnings += _threshold_warnings(path, cfg, version)
    heads = "hook_z" if old and "hook_z" in (source.hook or "") else "none"
    if cfg.choice("reshape_activations", ("none", "hook_z"), heads) == "hook_z":
        warnings.append("It reads attention heads side by side: give it activations [tokens, heads * d_head].")
    facts: dict[str, Any] = {"sae_lens_version": version, "fitted_on": source.recorded}
    facts |= {key: metadata.maybe_text(key) for key in ("training_architecture", "hf_hook_name", "hf_hook_name_out")}
    return assemble(
        file,
        form,
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        threshold=threshold,
        w_skip=w_skip,
        selection="topk" if topk else "threshold",
        k=k,
        pre_bias=pre_bias,
        norm=_NORMS[norm],
        transcoder=transcoder,
        model=source.model,
        hook=source.hook,
        hook_out=source.hook_out,
        left_out=source.left_out,
        provenance={key: value for key, value in facts.items() if value},
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
    """The factor on activations in training, and a warning about it."""
    scaler = config_of(path, "activation_scaler.json")
    if scaler is None or "scaling_factor" not in scaler:
        return 1.0, (
            "It was fitted on scaled activations, and this folder does not tell the scale. SAELens applies none "
            "either: multiply activations by the run's scaling factor, or convert the run's final save."
        )
    scale = scaler.number("scaling_factor")
    if scale <= 0:
        raise ValueError(f"{scaler.file}: scaling_factor is {scale}, expected a positive number")
    return scale, f"The run's input scale {scale:.6g} is folded in, as SAELens does in its final save."


def _threshold(tensors: Tensors, form: str, d_sae: int) -> Double | float | None:
    if form in ("standard", "transcoder", "skip_transcoder"):
        return 0.0
    if form.startswith("jumprelu"):
        if "log_threshold" in tensors:  # training checkpoints before 6.0
            return np.exp(tensors.vector("log_threshold", d_sae))
        return tensors.vector("threshold", d_sae)
    if form in _BATCH and "topk_threshold" in tensors:
        threshold = tensors.scalar("topk_threshold")
        return threshold if threshold > 0 else None
    return None


def _refuse_unknown(tensors: Tensors, form: str, d_sae: int) -> None:
    factors = ("scaling_factor", "finetuning_scaling_factor")
    for name in factors:
        tensors.refuse_scaling(name, d_sae)
    known = ["W_enc", "W_dec", "b_dec", *factors, *(_GATE if form == "gated" else ["b_enc"])]
    if form.startswith("jumprelu"):
        known += ["threshold", "log_threshold"]
    if form in _BATCH:
        known.append("topk_threshold")
    tensors.refuse_others(*known, *(["W_skip"] if "skip" in form else []))


def _threshold_warnings(path: Path, cfg: Config, version: str | None) -> list[str]:
    """Warnings about a threshold. SAELens before 6.54.12 saved wrong ones of BatchTopK runs with an input scale."""
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
