"""Goodfire's SAEs of Llama: one file of torch.save with two linear layers, ReLU between them, and no pre-bias."""

import re
from pathlib import Path

from sae_runtime.checkpoints.checkpoint import Checkpoint, assemble
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of

ARCHITECTURES = ("relu",)
_TENSORS = tuple(f"{side}_linear.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias"))
_NAME = re.compile(r"(Llama-.+)-SAE-l(\d+)")


def recognises(path: Path) -> bool:
    """Whether the file at `path` holds the tensors of a Goodfire SAE."""
    return path.is_file() and path.suffix in (".pt", ".pth") and set(_TENSORS) <= set(read_torch(path))


def read(path: Path) -> Checkpoint:
    """The SAE in a file of Goodfire.

    Raises:
        ImportError: torch is not installed.
        ValueError: it is damaged or incomplete.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; an SAE of Goodfire is one file of torch.save, name it")
    tensors = tensors_of(path, read_torch(path))
    tensors.refuse_others(*_TENSORS)
    w_enc = tensors.matrix("encoder_linear.weight").T
    d_in, d_sae = w_enc.shape
    name = _NAME.fullmatch(path.stem)
    return assemble(
        path,
        "relu",
        w_enc=w_enc,
        b_enc=tensors.vector("encoder_linear.bias", d_sae),
        w_dec=tensors.matrix("decoder_linear.weight", d_in, d_sae).T,
        b_dec=tensors.vector("decoder_linear.bias", d_in),
        threshold=0.0,
        pre_bias=False,
        model=f"meta-llama/{name[1]}" if name else None,
        hook=f"blocks.{int(name[2])}.hook_resid_post" if name else None,
    )
