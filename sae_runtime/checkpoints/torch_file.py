"""The dicts of tensors that torch.save wrote: only tensors, numbers and strings are read."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sae_runtime.bundle.torch_files import as_array, check_torch_file, is_tensor, load_torch_file
from sae_runtime.checkpoints.stored import Stored, Tensors

_MAX_DEPTH = 4


def read_torch(file: Path) -> dict[str, Any]:
    """The dict that torch.save wrote, and the dicts inside it, with tensors as `Stored`.

    Raises:
        ImportError: torch is not installed.
        ValueError: the file is not of torch.save, is damaged, claims more than it holds, or holds pickled objects.

    >>> import torch
    >>> torch.save({"W_enc": torch.zeros(24, 150), "k": 6}, "ae.pt")
    >>> state = read_torch(Path("ae.pt"))
    >>> state["W_enc"].shape, state["k"]
    ((24, 150), 6)
    """
    check_torch_file(file)
    state = load_torch_file(file)
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, expected a dict of tensors; save its state_dict")
    return _stored(file, state, ())


def tensors_of(file: Path, state: Mapping[str, Any]) -> Tensors:
    """The values of a dict that are tensors."""
    return Tensors(file, {name: value for name, value in state.items() if isinstance(value, Stored)})


def _stored(file: Path, state: Mapping[Any, Any], keys: tuple[Any, ...]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in state.items():
        path = (*keys, key)
        if is_tensor(value):
            shape = as_array(file, str(key), value).shape
            out[str(key)] = Stored(
                file=file, name=".".join(map(str, path)), shape=shape, open=functools.partial(_open, file, path)
            )
        elif isinstance(value, dict) and len(keys) < _MAX_DEPTH:
            out[str(key)] = _stored(file, value, path)
        else:
            out[str(key)] = value
    return out


def _open(file: Path, keys: tuple[Any, ...]) -> NDArray[Any]:
    tensor = functools.reduce(lambda value, key: value[key], keys, load_torch_file(file))
    return as_array(file, str(keys[-1]), tensor)
