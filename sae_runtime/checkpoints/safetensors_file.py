"""Safetensors files as `Tensors`."""

from functools import partial
from pathlib import Path

from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.checkpoints.stored import Stored, Tensors


def open_safetensors(file: Path) -> Tensors:
    """The tensors of a safetensors file, mapped when they are read.

    Raises:
        ValueError: the file is not a whole safetensors file.

    >>> from safetensors.numpy import save_file
    >>> save_file({"W_enc": np.zeros((24, 150), np.float32)}, "sae.safetensors")
    >>> open_safetensors(Path("sae.safetensors")).matrix("W_enc").shape
    (24, 150)
    """
    stored = {
        name: Stored(file=file, name=name, shape=spec.shape, open=partial(map_tensor, file, spec))
        for name, spec in read_header(file).items()
    }
    return Tensors(file, stored)
