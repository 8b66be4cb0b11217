"""bartbussmann/BatchTopK: config.json and sae.pt.

The formulas are those of its `sae.py`: classes `VanillaSAE`, `TopKSAE`, `BatchTopKSAE` and `JumpReLUSAE`
(arXiv:2412.06410). The first versions had more settings; the reader refuses settings that compute something else.
"""

from pathlib import Path

import numpy as np

from sae_runtime.checkpoints import folding
from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.fitted_on import fitted_on
from sae_runtime.checkpoints.folder import config_and_weights, config_of, has
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

CFG, WEIGHTS = "config.json", "sae.pt"
ARCHITECTURES = ("vanilla", "topk", "batchtopk", "jumprelu")


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of BatchTopK."""
    if not has(path, CFG, WEIGHTS) or (cfg := config_of(path, CFG)) is None:
        return False
    return "act_size" in cfg and "dict_size" in cfg


def read(path: Path) -> Checkpoint:
    """The SAE in a folder of BatchTopK.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged or incomplete, or `manifest.Architecture` cannot describe what it computes.
    """
    cfg, file = config_and_weights(path, CFG, WEIGHTS, "BatchTopK")
    kind, normed = cfg.choice("sae_type", ARCHITECTURES), cfg.flag("input_unit_norm", False)
    if cfg.text("activation", "relu") != "relu":
        raise ValueError(f"{cfg.file}: activation {cfg.text('activation')} cannot be served, only relu can")
    if "use_encoder_bias" in cfg and normed:
        raise ValueError(
            f"{cfg.file}: the first versions did not undo input_unit_norm soundly; fit it with a later one"
        )
    d_in, d_sae = cfg.size("act_size"), cfg.size("dict_size")
    tensors, log_threshold = tensors_of(file, read_torch(file)), "jumprelu.log_threshold"
    tensors.refuse_others("W_enc", "W_dec", "b_enc", "b_dec", log_threshold, "num_batches_not_active")
    w_enc = tensors.matrix("W_enc", d_in, d_sae)
    top = kind in ("topk", "batchtopk")
    # These two kinds have a b_enc that they do not use, unless a first version says so.
    biased = not top or cfg.flag("use_encoder_bias", False)
    b_enc = tensors.vector("b_enc", d_sae) if biased else np.zeros(d_sae)
    w_dec = w_enc.T if cfg.flag("tied_weights", False) else tensors.matrix("W_dec", d_sae, d_in)
    b_dec, pre_bias, w_skip = tensors.vector("b_dec", d_in), kind != "jumprelu", None
    source = fitted_on(cfg, norm := "layer" if normed else "none", transcoder=False)
    if source.centred:
        w_enc, b_enc = folding.without_mean(w_enc, b_enc, b_dec if pre_bias else None)
        pre_bias, w_skip = False, folding.mean_of(w_dec)
    threshold = 0.0 if kind == "vanilla" else None
    uncalibrated = ("It knows only its batch rule; run sae-runtime calibrate.",) if kind == "batchtopk" else ()
    return assemble(
        file,
        kind,
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        threshold=np.exp(tensors.vector(log_threshold, d_sae)) if kind == "jumprelu" else threshold,
        w_skip=w_skip,
        selection="topk" if kind == "topk" else "threshold",
        k=cfg.size("top_k") if top else None,
        pre_bias=pre_bias,
        norm=norm,
        model=source.model,
        hook=source.hook,
        provenance={"fitted_on": source.recorded} if source.recorded else {},
        warnings=(*source.warnings, *uncalibrated),
    )
