"""Files of torch.save, read without unpickling anything but tensors, numbers and strings.

`torch.load(weights_only=True, mmap=True)` reads them. It checks neither checksums nor that the file holds as many bytes
as the pickle says, so this module does. torch is imported when it is called, and need not be installed otherwise.
"""

import importlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import extras
from sae_runtime.bundle.regular import open_regular
from sae_runtime.bundle.torch_pickles import LARGEST_PICKLE, check_pickle

_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
_DEEPEST, _MOST_VALUES = 64, 1 << 18  # of containers inside one another, and of all values in them
_BAD = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError)


def check_torch_file(file: Path) -> None:
    """Refuse a file that torch.save did not write as it is; all of it is read.

    Raises:
        ImportError: torch is not installed.
        ValueError: the file is not of torch.save, or is damaged.

    >>> import torch
    >>> torch.save(torch.zeros(2, 3), "x.pt")
    >>> check_torch_file(Path("x.pt"))
    """
    if "torch" in extras.missing("train"):
        extras.require("train")
    try:
        with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
            if any(member.compress_size != member.file_size for member in archive.infolist()):
                raise zipfile.BadZipFile("a member is compressed or claims a wrong size")
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged!r} has a wrong checksum")
            pickled = archive.read(_pickle_of(archive))
    except _BAD as error:
        raise ValueError(
            f"{file} is not a sound file of torch.save ({_one_line(error)}); get it again, or save it by a later torch"
        ) from error
    check_pickle(file, pickled)


def _pickle_of(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The member that torch unpickles; raises BadZipFile where torch could take another one than zipfile does."""
    members = archive.infolist()
    names = [member.filename.lower() for member in members]
    folders = {name.partition("/")[0] for name in names}
    if len(set(names)) < len(names) or len(folders) != 1 or f"{folders.pop()}/data.pkl" not in names:
        raise zipfile.BadZipFile("it is not one folder with one data.pkl")
    if archive.comment or min(member.header_offset for member in members):
        raise zipfile.BadZipFile("bytes stand before or behind it")
    pickled = next(member for member in members if member.filename.endswith("/data.pkl"))
    if pickled.file_size > LARGEST_PICKLE:
        raise zipfile.BadZipFile(f"its pickle has {pickled.file_size:,} bytes, at most {LARGEST_PICKLE:,} are read")
    return pickled


def load_torch_file(file: Path) -> Any:
    """What torch.save wrote, with tensors mapped from the file.

    Raises:
        ValueError: the file is damaged, claims more than it holds, or holds pickled objects.

    >>> import torch
    >>> torch.save(torch.zeros(2, 3), "x.pt")
    >>> load_torch_file(Path("x.pt")).shape
    torch.Size([2, 3])
    """
    torch = importlib.import_module("torch")
    sizes: list[int] = []  # bytes of each storage

    def kept(storage: Any, _: str) -> Any:
        sizes.append(storage.nbytes())
        return storage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saved = torch.load(file, map_location=kept, weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle makes torch raise errors of many classes
        text = _one_line(error)
        if "weights_only" in text or "Weights only" in text:
            raise ValueError(
                f"{file} holds pickled objects, which could run anything and are not loaded; save its state_dict alone"
            ) from error
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {text}); get a sound copy") from error
    with zipfile.ZipFile(file) as archive:
        held = [m.file_size for m in archive.infolist() if m.filename.split("/")[-2:-1] == ["data"]]
    if sorted(sizes) != sorted(held):
        raise ValueError(f"{file} does not hold as many numbers as its tensors need; get a sound copy")
    _refuse_growth(file, saved)
    return saved


def _refuse_growth(file: Path, saved: Any) -> None:
    """Refuse containers that are inside themselves, or so often in others that a walk through all has no end.

    A pickle of a few lines can hold a dict of 100 names for one dict, which has 100 names for the next, and so on.
    """
    level, walked = [saved], 1
    for _ in range(_DEEPEST):
        level = [value for value in level if isinstance(value, dict | list | tuple | set)]
        walked += sum(map(len, level))
        if walked > _MOST_VALUES:
            break
        level = [part for value in level for part in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return
    raise ValueError(f"{file} holds lists and dicts inside one another without end; save its state_dict alone")


def is_tensor(value: Any) -> bool:
    """Whether a value of `load_torch_file` is a tensor."""
    return isinstance(value, importlib.import_module("torch").Tensor)


def as_array(file: Path, name: str, tensor: Any) -> NDArray[Any]:
    """A tensor of a file as a view of the mapped file; bfloat16 as uint16.

    Raises:
        ValueError: it is not a dense tensor of numbers, or claims more than the file holds.

    >>> import torch
    >>> torch.save(torch.ones(3), "x.pt")
    >>> as_array(Path("x.pt"), "x", load_torch_file(Path("x.pt")))
    array([1., 1., 1.], dtype=float32)
    """
    torch = importlib.import_module("torch")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or dtype not in _DTYPES:
        raise ValueError(f"{file}: {name} is a {tensor.layout} tensor of {dtype}, expected a dense one of floats")
    if tensor.nbytes > file.stat().st_size:
        raise ValueError(
            f"{file}: {name} claims shape {list(tensor.shape)}, more than the file holds; get a sound copy"
        )
    flat = tensor.detach()
    array: NDArray[Any] = (flat.view(torch.int16) if dtype == "bfloat16" else flat).numpy()
    return array.view(np.uint16) if dtype == "bfloat16" else array


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100]
