"""Files of numpy.savez, compressed or not; only arrays of numbers are read."""

import functools
import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.checkpoints.stored import Stored, Tensors

_MOST_COMPRESSED = 200  # a factor; weights shrink by a tenth, and an array of nearly only zeros is no SAE
_SMALL = 1 << 24  # bytes; below this any compression is accepted
_KINDS = ("<f2", "<f4", "<f8")
_BAD = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    ValueError,
)


def open_npz(file: Path) -> Tensors:
    """The arrays of an .npz file.

    Raises:
        ValueError: the file is not of numpy.savez, damaged, unpacks to far more than it is, or holds objects.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _refuse_bomb(file, members)
            return Tensors(file, {member.filename[:-4]: _header(file, archive, member) for member in members})
    except _BAD as error:
        raise _damaged(file, error) from error


def _refuse_bomb(file: Path, members: list[zipfile.ZipInfo]) -> None:
    size = file.stat().st_size
    claimed = sum(member.file_size for member in members)
    if claimed > max(_SMALL, _MOST_COMPRESSED * size) or any(member.compress_size > size for member in members):
        raise ValueError(f"it would unpack from {size} to {claimed} bytes")


def _header(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stored:
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename!r} in it is no array")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy warns of headers that Python 2 wrote
            shape, _, dtype = read(stream)
        length = stream.tell()
    name = member.filename[:-4]
    if dtype.str not in _KINDS:
        raise ValueError(f"{name} is of {dtype}, expected floats")
    if any(n < 0 for n in shape) or length + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"{name} is not as large as its shape {list(shape)} says")
    return Stored(file=file, name=name, shape=shape, open=functools.partial(_open, file, member.filename))


def _open(file: Path, member: str) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except _BAD as error:
        raise _damaged(file, error) from error
    return array


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is not a sound file of numpy.savez ({' '.join(str(error).split())[:120]}); get it again")
