"""Files of torch.save; only tensors, numbers and strings are read."""

import functools
import math
import struct
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
    """The dict that torch.save wrote, and dicts within it, with tensors as `Stored`.

    Raises:
        ImportError: torch is not installed.
        ValueError: the file is not of torch.save, damaged, claims more than it holds, or holds pickled objects.
    """
    if "torch" in extras.missing("train"):
        extras.require("train")
    _check_archive(file)
    return _stored(file, _load(file), ())


def tensors_of(file: Path, state: Mapping[str, Any]) -> Tensors:
    """The values of a dict that are tensors."""
    return Tensors(file, {name: value for name, value in state.items() if isinstance(value, Stored)})


def _check_archive(file: Path) -> None:
    """Refuse archives that torch.save never writes: with compression, or with a wrong checksum."""
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except _BAD as error:
        raise ValueError(
            f"{file} is not a file of torch.save, which is a zip archive; if it is older, load and save it with a "
            "later torch"
        ) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"{file} holds compressed members, which torch.save never writes; get a sound copy")
    if sum(member.file_size for member in members) > size:
        raise ValueError(f"{file} claims to hold more than its {size} bytes; get a sound copy")
    try:
        with zipfile.ZipFile(file) as archive:
            spoilt = archive.testzip()
    except _BAD as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())[:100]}); get a sound copy") from error
    if spoilt is not None:
        raise ValueError(f"{file} is damaged at {spoilt!r}; get a sound copy")


def _load(file: Path) -> dict[Any, Any]:
    import torch

    storages: list[tuple[int, int]] = []  # address and number of bytes

    def kept(storage: Any, _: str) -> Any:
        storages.append((storage.data_ptr(), storage.nbytes()))
        return storage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location=kept, weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle makes torch raise errors of many classes
        text = " ".join(str(error).split())
        if "weights_only" in text or "Weights only" in text:
            raise ValueError(
                f"{file} holds pickled objects, which could run anything and are not loaded; save its state_dict alone"
            ) from error
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {text[:100]}); get a sound copy") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, expected a dict of tensors; save its state_dict")
    if _places(storages) != _places(_data(file)):
        raise ValueError(f"{file} does not hold as many numbers as its tensors need; get a sound copy")
    return state


def _data(file: Path) -> list[tuple[int, int]]:
    """Offset and number of bytes of each tensor's data in the file."""
    out = []
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        for member in archive.infolist():
            if member.filename.split("/")[-2:-1] == ["data"]:
                stream.seek(member.header_offset + 26)  # where a header gives the lengths of its name and extra field
                name, extra = struct.unpack("<HH", stream.read(4))
                out.append((member.header_offset + 30 + name + extra, member.file_size))
    return out


def _places(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs of bytes in order, counted from the first, without empty ones; torch maps them without this comparison."""
    runs = sorted(run for run in runs if run[1])
    return [(begin - runs[0][0], size) for begin, size in runs]


def _stored(file: Path, state: Mapping[Any, Any], keys: tuple[Any, ...]) -> dict[str, Any]:
    import torch

    out: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            _check(file, str(key), value)
            out[str(key)] = Stored(
                file=file,
                name=".".join(map(str, (*keys, key))),
                shape=tuple(value.shape),
                open=functools.partial(_open, file, (*keys, key)),
            )
        elif isinstance(value, dict) and len(keys) < _MAX_DEPTH:
            out[str(key)] = _stored(file, value, (*keys, key))
        else:
            out[str(key)] = value
    return out


def _check(file: Path, name: str, tensor: Any) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != _strided() or tensor.device.type != "cpu" or dtype not in _DTYPES:
        raise ValueError(f"{file}: {name} is a {tensor.layout} tensor of {dtype}, expected a dense one of floats")
    if math.prod(tensor.shape) * tensor.element_size() > file.stat().st_size:
        raise ValueError(
            f"{file}: {name} claims shape {list(tensor.shape)}, more than the file holds; get a sound copy"
        )


def _strided() -> Any:
    import torch

    return torch.strided


def _open(file: Path, keys: tuple[Any, ...]) -> NDArray[Any]:
    import torch

    value: Any = _load(file)
    for key in keys:
        value = value[key]
    tensor = value.detach()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(np.uint16)
    return np.asarray(tensor.numpy())
