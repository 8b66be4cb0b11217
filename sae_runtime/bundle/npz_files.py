"""Files of numpy.savez, compressed or not. Each array is known by its header before anything is unpacked."""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.regular import open_regular

_GROWTH = 20  # a factor; arrays of numbers shrink to a half or a third, and those of nearly only zeros are no data
_SMALL = 1 << 24  # bytes to which any file may unpack


@dataclass(frozen=True, kw_only=True)
class Member:
    """An array of an .npz file that is not read yet: its shape and type, and where it stands."""

    path: Path
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    fortran: bool
    begin: int  # bytes before its numbers in the member

    def read(self) -> NDArray[Any]:
        """The array; its checksum is compared."""
        with open_regular(self.path) as opened, zipfile.ZipFile(opened) as archive, archive.open(self.info) as file:
            file.read(self.begin)
            data = file.read(self.info.file_size)  # to the end, where zipfile compares the checksum
        array = np.frombuffer(data, self.dtype, math.prod(self.shape))
        return array.reshape(self.shape, order="F" if self.fortran else "C")

    def mapped(self) -> NDArray[Any]:
        """The array, mapped where it is not compressed; its checksum is not compared then."""
        if self.info.compress_type != zipfile.ZIP_STORED or not math.prod(self.shape):
            return self.read()
        with open_regular(self.path) as file:
            file.seek(self.info.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        offset = self.info.header_offset + 30 + name + extra + self.begin
        return np.memmap(self.path, self.dtype, "r", offset, self.shape, "F" if self.fortran else "C")


def npz_members(path: Path) -> dict[str, Member]:
    """The arrays of a file, by name.

    Raises:
        ValueError: the file unpacks to far more than its size, or a member is no array of numbers, or holds more or
            fewer than its header says; or another error of zipfile or numpy: the file is damaged.

    >>> np.savez("x.npz", x=np.zeros((2, 3)))
    >>> npz_members(Path("x.npz"))["x"].shape
    (2, 3)
    """
    with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
        claimed, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
        if claimed > max(_SMALL, _GROWTH * size):
            raise ValueError(f"it would unpack from {size:,} to {claimed:,} bytes; unpack it yourself")
        members = {}
        for info in archive.infolist():
            with archive.open(info) as file:
                if file.read(6) != b"\x93NUMPY":
                    raise ValueError(f"{info.filename} is not an array")
                file.seek(0)
                shape, fortran, dtype = _header(file)
                begin = file.tell()
            if dtype.hasobject or begin + math.prod(shape) * dtype.itemsize != info.file_size:
                raise ValueError(f"{info.filename} does not hold the numbers that its header says")
            member = Member(path=path, info=info, shape=shape, dtype=dtype, fortran=fortran, begin=begin)
            members[info.filename.removesuffix(".npy")] = member
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its arrays have one name")
    return members


def _header(file: Any) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"its header says the shape {list(shape)}")
    return shape, fortran, dtype
