"""Files of numpy.savez as `Tensors`."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sae_runtime.bundle.npz_files import Member, npz_members
from sae_runtime.checkpoints.stored import Stored, Tensors


def open_npz(file: Path) -> Tensors:
    """The arrays of an .npz file, each read when its numbers are needed.

    Raises:
        ValueError: the file is not of numpy.savez, is damaged, unpacks to far more than its size, or holds anything but
            arrays of floats.

    >>> np.savez("params.npz", W_enc=np.zeros((24, 150), np.float32))
    >>> open_npz(Path("params.npz")).matrix("W_enc").shape
    (24, 150)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy warns of headers that Python 2 wrote
            members = npz_members(file)
        for name, member in members.items():
            if member.dtype.kind != "f":
                raise ValueError(f"{name} is not an array of floats")
    except Exception as error:  # a damaged archive or header raises errors of many classes
        raise _damaged(file, error) from error
    return Tensors(
        file,
        {
            name: Stored(file=file, name=name, shape=member.shape, open=partial(_open, member))
            for name, member in members.items()
        },
    )


def _open(member: Member) -> NDArray[Any]:
    try:
        return member.read()
    except Exception as error:
        raise _damaged(member.path, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is not a sound file of numpy.savez ({' '.join(str(error).split())[:120]}); get it again")
