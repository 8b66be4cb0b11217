"""EleutherAI sparsify (once `sae`): cfg.json and sae.safetensors in a folder of the hook's name.

The mathematics is that of `sparsify/sparse_coder.py` 1.3.
"""

from pathlib import Path

from sae_runtime.bundle.manifest import Allocation, Architecture
from sae_runtime.checkpoints.checkpoint import Checkpoint, gather
from sae_runtime.checkpoints.folder import config_of, find, has, home, read_config
from sae_runtime.checkpoints.safetensors_file import open_safetensors

CFG, WEIGHTS = "cfg.json", "sae.safetensors"
ARCHITECTURES = ("topk", "groupmax")


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of sparsify."""
    return has(path, CFG, WEIGHTS)


def read(path: Path) -> Checkpoint:
    """The SAE or transcoder in a folder of sparsify.

    Raises:
        ValueError: it is damaged, incomplete, or computes what `manifest.Architecture` cannot.
    """
    cfg, file = config_of(path, CFG), find(path, WEIGHTS)
    if cfg is None or file is None:
        raise ValueError(f"{path} lacks {CFG} or {WEIGHTS}, which sparsify writes; get the whole folder")
    activation = cfg.text("activation", "topk")
    if activation not in ARCHITECTURES:
        raise ValueError(f"{cfg.file}: activation is {activation}, expected one of {', '.join(ARCHITECTURES)}")
    if cfg.flag("signed", False):
        raise ValueError(f"{cfg.file}: a signed SAE keeps negative features, which cannot be served")
    d_in = cfg.size("d_in")
    d_sae = cfg.integer("num_latents", 0) or d_in * cfg.size("expansion_factor", 32)
    transcode, skip = cfg.flag("transcode", False), cfg.flag("skip_connection", False)
    k = cfg.size("k", 32)
    tensors, (model, hook) = open_safetensors(file), _source(path)
    tensors.refuse_others("encoder.weight", "encoder.bias", "W_dec", "b_dec", *(["W_skip"] if skip else []))
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection=activation,
            k=k,
            pre_bias=not transcode,
            d_out=d_in if transcode else None,
            skip=skip,
        ),
        weights=gather(
            file,
            w_enc=tensors.matrix("encoder.weight", d_sae, d_in).T,
            b_enc=tensors.vector("encoder.bias", d_sae),
            w_dec=tensors.matrix("W_dec", d_sae, d_in),
            b_dec=tensors.vector("b_dec", d_in),
            w_skip=tensors.matrix("W_skip", d_in, d_in) if skip else None,
        ),
        file=file,
        source_format=f"{activation}{' skip' if skip else ''}{' transcoder' if transcode else ''}",
        allocation=Allocation(kind="token", k=float(k)),
        model=model,
        hook=hook,
    )


def _source(path: Path) -> tuple[str | None, str | None]:
    """Model and hook, from the config.json of the run, which is beside the folders of its hooks."""
    folder = home(path).absolute()
    try:
        run = read_config(folder.parent / "config.json")
        model, hooks = run.maybe_text("model"), run.fields.get("hookpoints")
    except (ValueError, OSError):  # the SAE can be computed without them
        return None, None
    return model, folder.name if isinstance(hooks, list) and folder.name in hooks else None
