"""SAEs of attention outputs by Kissane and others: NAME.pt and NAME_cfg.json (arXiv:2406.17759).

The formula is that of SAELens's loader: ReLU of (x - b_dec) W_enc + b_enc. The activation is all heads side by side.
"""

from pathlib import Path

from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.folder import Config, config_of
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

ARCHITECTURES = ("relu",)


def recognises(path: Path) -> bool:
    """Whether the file at `path` has a configuration of its name beside it."""
    if path.suffix != ".pt" or not path.is_file():
        return False
    cfg = _config(path)
    return cfg is not None and "act_name" in cfg and "dict_size" in cfg


def read(path: Path) -> Checkpoint:
    """The SAE in a file of torch.save.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged or incomplete, or reads an activation that the model itself does not have.
    """
    cfg = _config(path) if path.is_file() else None
    if cfg is None:
        raise ValueError(f"{path} lacks the configuration {path.stem}_cfg.json beside it; get both files")
    tensors = tensors_of(path, read_torch(path))
    tensors.refuse_others("W_enc", "W_dec", "b_enc", "b_dec")
    d_in, d_sae, hook = cfg.size("act_size"), cfg.size("dict_size"), cfg.text("act_name")
    return assemble(
        path,
        "relu",
        w_enc=tensors.matrix("W_enc", d_in, d_sae),
        b_enc=tensors.vector("b_enc", d_sae),
        w_dec=tensors.matrix("W_dec", d_sae, d_in),
        b_dec=tensors.vector("b_dec", d_in),
        threshold=0.0,
        model=cfg.maybe_text("model_name"),
        hook=hook,
        warnings=(
            f"Its authors loaded the model with TransformerLens's processing, and the file does not tell which: where "
            f"value biases were folded, {hook} lacks them. As in SAELens, the bundle takes the model's own.",
        ),
    )


def _config(path: Path) -> Config | None:
    return config_of(path, f"{path.stem}_cfg.json")
