"""Files of torch.save: only tensors, numbers and strings are read.

`torch.load(weights_only=True, mmap=True)` reads them. It checks neither checksums nor that the file holds as many bytes
as the pickle says, so this module does.
"""

import functools
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import extras
from sae_runtime.checkpoints.stored import Stored, Tensors

_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
_MAX_DEPTH = 4
_BAD = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError)


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
    if "torch" in extras.missing("train"):
        extras.require("train")
    try:
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_size != member.file_size for member in archive.infolist()):
                raise zipfile.BadZipFile("a member is compressed or claims a wrong size")
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged!r} has a wrong checksum")
    except _BAD as error:
        raise ValueError(
            f"{file} is not a sound file of torch.save ({_one_line(error)}); get it again, or save it by a later torch"
        ) from error
    return _stored(file, _load(file), ())


def tensors_of(file: Path, state: Mapping[str, Any]) -> Tensors:
    """The values of a dict that are tensors."""
    return Tensors(file, {name: value for name, value in state.items() if isinstance(value, Stored)})


def _load(file: Path) -> dict[Any, Any]:
    import torch

    sizes: list[int] = []  # bytes of each storage

    def kept(storage: Any, _: str) -> Any:
        sizes.append(storage.nbytes())
        return storage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location=kept, weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle makes torch raise errors of many classes
        text = _one_line(error)
        if "weights_only" in text or "Weights only" in text:
            raise ValueError(
                f"{file} holds pickled objects, which could run anything and are not loaded; save its state_dict alone"
            ) from error
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {text}); get a sound copy") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, expected a dict of tensors; save its state_dict")
    with zipfile.ZipFile(file) as archive:
        held = [m.file_size for m in archive.infolist() if m.filename.split("/")[-2:-1] == ["data"]]
    if sorted(sizes) != sorted(held):
        raise ValueError(f"{file} does not hold as many numbers as its tensors need; get a sound copy")
    return state


def _stored(file: Path, state: Mapping[Any, Any], keys: tuple[Any, ...]) -> dict[str, Any]:
    import torch

    out: dict[str, Any] = {}
    for key, value in state.items():
        path = (*keys, key)
        if isinstance(value, torch.Tensor):
            shape = _array(file, path, value).shape
            out[str(key)] = Stored(
                file=file, name=".".join(map(str, path)), shape=shape, open=functools.partial(_open, file, path)
            )
        elif isinstance(value, dict) and len(keys) < _MAX_DEPTH:
            out[str(key)] = _stored(file, value, path)
        else:
            out[str(key)] = value
    return out


def _open(file: Path, keys: tuple[Any, ...]) -> NDArray[Any]:
    return _array(file, keys, functools.reduce(lambda value, key: value[key], keys, _load(file)))


def _array(file: Path, keys: tuple[Any, ...], tensor: Any) -> NDArray[Any]:
    """The tensor as a view of the mapped file; bfloat16 as uint16."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or dtype not in _DTYPES:
        raise ValueError(f"{file}: {keys[-1]} is a {tensor.layout} tensor of {dtype}, expected a dense one of floats")
    if tensor.nbytes > file.stat().st_size:
        raise ValueError(
            f"{file}: {keys[-1]} claims shape {list(tensor.shape)}, more than the file holds; get a sound copy"
        )
    flat = tensor.detach()
    array: NDArray[Any] = (flat.view(torch.int16) if dtype == "bfloat16" else flat).numpy()
    return array.view(np.uint16) if dtype == "bfloat16" else array


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100]
