"""Safetensors files as `Tensors`."""

from functools import partial
from pathlib import Path

from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.checkpoints.stored import Stored, Tensors


def open_safetensors(file: Path) -> Tensors:
    """The tensors of a safetensors file, mapped when they are read.

    Raises:
        ValueError: the file is not a whole safetensors file.
    """
    specs = read_header(file)
    return Tensors(
        file,
        {
            name: Stored(file=file, name=name, shape=spec.shape, open=partial(map_tensor, file, spec))
            for name, spec in specs.items()
        },
    )
