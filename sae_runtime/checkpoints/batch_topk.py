"""bartbussmann/BatchTopK: config.json and sae.pt.

The mathematics is that of its `sae.py`: classes `VanillaSAE`, `TopKSAE`, `BatchTopKSAE` and `JumpReLUSAE`
(arXiv:2412.06410). The first versions had more settings; those that compute something else are refused.
"""

from pathlib import Path

import numpy as np

from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.checkpoints.checkpoint import Checkpoint, gather
from sae_runtime.checkpoints.folder import Config, config_of, find, has
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
        ValueError: it is damaged, incomplete, or computes what `manifest.Architecture` cannot.
    """
    cfg, file = config_of(path, CFG), find(path, WEIGHTS)
    if cfg is None or file is None:
        raise ValueError(f"{path} lacks {CFG} or {WEIGHTS}, which BatchTopK writes; get the whole folder")
    kind = cfg.text("sae_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"{cfg.file}: sae_type is {kind}, expected one of {', '.join(ARCHITECTURES)}")
    _refuse_early(cfg)
    d_in, d_sae = cfg.size("act_size"), cfg.size("dict_size")
    tensors = tensors_of(file, read_torch(file))
    w_enc, log_threshold = tensors.matrix("W_enc", d_in, d_sae), "jumprelu.log_threshold"
    tensors.refuse_others("W_enc", "W_dec", "b_enc", "b_dec", log_threshold, "num_batches_not_active")
    chosen = kind in ("topk", "batchtopk")
    # These two have a b_enc that they do not use, unless a first version says so.
    biased = not chosen or cfg.flag("use_encoder_bias", False)
    k = cfg.size("top_k") if chosen else None
    threshold = None
    if kind == "vanilla":
        threshold = np.zeros(d_sae)
    elif kind == "jumprelu":
        threshold = np.exp(tensors.vector(log_threshold, d_sae))
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection="topk" if kind == "topk" else "threshold",
            k=k if kind == "topk" else None,
            pre_bias=kind != "jumprelu",
            norm="layer" if cfg.flag("input_unit_norm", False) else "none",
        ),
        weights=gather(
            file,
            w_enc=w_enc,
            b_enc=tensors.vector("b_enc", d_sae) if biased else np.zeros(d_sae),
            w_dec=w_enc.T if cfg.flag("tied_weights", False) else tensors.matrix("W_dec", d_sae, d_in),
            b_dec=tensors.vector("b_dec", d_in),
            threshold=threshold,
        ),
        file=file,
        source_format=kind,
        allocation=None if k is None else Allocation(kind="token" if kind == "topk" else "mutual", k=float(k)),
        model=cfg.maybe_text("model_name"),
        hook=cfg.maybe_text("hook_point"),
        warnings=("It knows only its batch rule; run sae-runtime calibrate.",) if kind == "batchtopk" else (),
    )


def _refuse_early(cfg: Config) -> None:
    if cfg.text("activation", "relu") != "relu":
        raise ValueError(f"{cfg.file}: activation {cfg.text('activation')} cannot be served, only relu can")
    if "use_encoder_bias" in cfg and cfg.flag("input_unit_norm", False):
        raise ValueError(
            f"{cfg.file}: the first versions did not undo input_unit_norm soundly; fit it with a later one"
        )
