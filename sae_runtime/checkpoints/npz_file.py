"""Files of numpy.savez, compressed or not: numpy reads them, without pickled objects."""

import functools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.checkpoints.stored import Stored, Tensors

_MOST_COMPRESSED = 200  # a factor; weights shrink by a tenth, and an array of nearly only zeros is no SAE
_SMALL = 1 << 24  # bytes; below this any compression is accepted


def open_npz(file: Path) -> Tensors:
    """The arrays of an .npz file.

    Each array is read once here, since numpy tells its shape only then, and again when its numbers are needed.

    Raises:
        ValueError: the file is not of numpy.savez, is damaged, unpacks to far more than its size, or holds objects.

    >>> np.savez("params.npz", W_enc=np.zeros((24, 150), np.float32))
    >>> open_npz(Path("params.npz")).matrix("W_enc").shape
    (24, 150)
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names, claimed = archive.namelist(), sum(member.file_size for member in archive.infolist())
        size = file.stat().st_size
        if claimed > max(_SMALL, _MOST_COMPRESSED * size):
            raise ValueError(f"it would unpack from {size} to {claimed} bytes")
    except Exception as error:  # a damaged archive raises errors of many classes
        raise _damaged(file, error) from error
    opened = {name.removesuffix(".npy"): functools.partial(_open, file, name) for name in names}
    return Tensors(
        file, {name: Stored(file=file, name=name, shape=read().shape, open=read) for name, read in opened.items()}
    )


def _open(file: Path, name: str) -> NDArray[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy warns of headers that Python 2 wrote
            with np.load(file, allow_pickle=False) as arrays:
                array: Any = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise ValueError(f"{name} is not an array of floats")
    except Exception as error:  # a damaged header makes numpy raise errors of many classes
        raise _damaged(file, error) from error
    return array


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is not a sound file of numpy.savez ({' '.join(str(error).split())[:120]}); get it again")
