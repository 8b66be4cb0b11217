"""EleutherAI sparsify (formerly `sae`): cfg.json and sae.safetensors in a folder that has the hook's name.

The formulas are those of `sparsify/sparse_coder.py` 1.3.
"""

from pathlib import Path

from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.folder import config_and_weights, has, home, read_config
from sae_runtime.checkpoints.safetensors_file import open_safetensors

CFG, WEIGHTS = "cfg.json", "sae.safetensors"
ARCHITECTURES = ("topk", "groupmax")


def recognises(path: Path) -> bool:
    """Whether the checkpoint at `path` has the files of sparsify."""
    return has(path, CFG, WEIGHTS)


def read(path: Path) -> Checkpoint:
    """The SAE or transcoder in a folder of sparsify.

    Raises:
        ValueError: it is damaged or incomplete, or `manifest.Architecture` cannot describe what it computes.
    """
    cfg, file = config_and_weights(path, CFG, WEIGHTS, "sparsify")
    activation = cfg.choice("activation", ARCHITECTURES, "topk")
    if cfg.flag("signed", False):
        raise ValueError(f"{cfg.file}: a signed SAE keeps negative features, which cannot be served")
    d_in = cfg.size("d_in")
    d_sae = cfg.integer("num_latents", 0) or d_in * cfg.size("expansion_factor", 32)
    transcode, skip = cfg.flag("transcode", False), cfg.flag("skip_connection", False)
    tensors, (model, hook) = open_safetensors(file), _source(path)
    tensors.refuse_others("encoder.weight", "encoder.bias", "W_dec", "b_dec", *(["W_skip"] if skip else []))
    return assemble(
        file,
        f"{activation}{' skip' if skip else ''}{' transcoder' if transcode else ''}",
        w_enc=tensors.matrix("encoder.weight", d_sae, d_in).T,
        b_enc=tensors.vector("encoder.bias", d_sae),
        w_dec=tensors.matrix("W_dec", d_sae, d_in),
        b_dec=tensors.vector("b_dec", d_in),
        w_skip=tensors.matrix("W_skip", d_in, d_in) if skip else None,
        selection=activation,
        k=cfg.size("k", 32),
        pre_bias=not transcode,
        transcoder=transcode,
        model=model,
        hook=f"input:{hook}" if hook and transcode else hook,  # a transcoder gives the module's output from its input
        hook_out=hook if transcode else None,
    )


def _source(path: Path) -> tuple[str | None, str | None]:
    """Model and hook. The run's config.json tells them; it is beside the folders of the hooks."""
    folder = home(path).absolute()
    try:
        run = read_config(folder.parent / "config.json")
        model, hooks = run.maybe_text("model"), run.fields.get("hookpoints")
    except (ValueError, OSError):  # serving needs neither
        return None, None
    return model, folder.name if isinstance(hooks, list) and folder.name in hooks else None
