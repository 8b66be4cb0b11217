"""Safetensors files, mapped without a copy and without torch, with the byte offset of every tensor.

The safetensors package does not give the offsets, by which ONNX graphs refer to tensors, and cannot read bfloat16 into
numpy. It holds a whole file in memory to write it, and leaves a hidden file if the process dies.
"""

import json
import math
import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.regular import open_regular
from sae_runtime.bundle.typed_json import read_json, shown

# numpy has no bfloat16: its 16 bits are mapped, and `core.arrays.bfloat16_to_float32` widens them.
_DTYPES: dict[str, "np.dtype[Any]"] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_ORDER = ("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL")  # in a file
_WRITTEN = _DTYPES | {"U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2")}  # some for others alone
_NAMES = {dtype: name for name, dtype in _WRITTEN.items()}  # uint16 is U16, since it comes last
_MAX_HEADER = 100_000_000  # bytes, as in the safetensors package
_MOST_AXES = 32
BLOCK = 1 << 21  # numbers in a part


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a tensor, and its position in the file: `offset` and `size` in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> dict[str, TensorSpec]:
    """The specs of all tensors of a safetensors file, by name.

    Raises:
        ValueError: the file is not safetensors, is truncated, or its header does not describe exactly its bytes.

    >>> save_tensors(Path("a.safetensors"), {"x": np.zeros((2, 3), np.float32)})
    >>> read_header(Path("a.safetensors"))["x"]
    TensorSpec(dtype='F32', shape=(2, 3), offset=72, size=24)
    """
    with open_regular(path) as file:
        file_size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or length > min(file_size - 8, _MAX_HEADER):
            raise ValueError(f"{path} is not a whole safetensors file: its header does not fit; copy it again")
        raw = file.read(length)
    try:
        header = read_json(dict[str, Any], raw, "it")
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        specs = {name: _spec(entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} has an unreadable safetensors header ({error}); copy it again") from error
    end = 8 + length
    for name, spec in sorted(specs.items(), key=lambda item: (item[1].offset, item[1].size)):
        if spec.offset != end:
            raise ValueError(f"{path}: tensor {name} starts at byte {spec.offset}, expected {end}; copy it again")
        end += spec.size
    if end != file_size:
        raise ValueError(f"{path} is {file_size} bytes, its header describes {end}: truncated; copy it again")
    return specs


def _spec(entry: Any, data_start: int) -> TensorSpec:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {shown(dtype)}, expected one of {', '.join(_DTYPES)}")
    if len(shape) > _MOST_AXES or not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape and offsets must be whole numbers, at most {_MOST_AXES} of a shape")
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"shape {list(shape)} of {dtype} does not fill {end - begin} bytes")
    return TensorSpec(dtype, shape, data_start + begin, end - begin)


def map_tensor(path: Path, spec: TensorSpec) -> NDArray[Any]:
    """A tensor as a read-only view of its file; bfloat16 as uint16.

    >>> save_tensors(Path("a.safetensors"), {"x": np.arange(3, dtype=np.float32)})
    >>> np.array(map_tensor(Path("a.safetensors"), read_header(Path("a.safetensors"))["x"]))
    array([0., 1., 2.], dtype=float32)
    """
    if spec.size == 0:
        return np.zeros(spec.shape, _DTYPES[spec.dtype])
    return np.memmap(path, _DTYPES[spec.dtype], "r", spec.offset, spec.shape)


def all_finite(array: NDArray[np.float32]) -> bool:
    """Whether a vector or a matrix holds neither NaN nor Inf.

    >>> all_finite(np.ones((2, 3), np.float32)), all_finite(np.array([1, np.nan, 2], np.float32))
    (True, False)
    """
    # Sums by BLAS take a quarter of the time of a look at each number. They may overflow where all numbers are finite.
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array @ np.ones(array.shape[-1], np.float32)).all() or np.isfinite(array).all())


class Streamed(Protocol):
    """A float32 tensor that gives its parts one by one, so that the whole tensor is never in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Parts of consecutive rows, with the numbers of these rows; a vector is one row."""


def blocks(array: NDArray[Any], size: int = BLOCK) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Parts of consecutive rows of a matrix: at most `size` numbers or else one row. A vector is one row.

    >>> [rows for rows, _ in blocks(np.zeros((5, 3)), size=6)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    matrix = array.reshape(1, -1) if array.ndim < 2 else array
    step = max(size // max(math.prod(matrix.shape[1:]), 1), 1)
    for begin in range(0, len(matrix), step):
        yield slice(begin, min(begin + step, len(matrix))), matrix[begin : begin + step]


def save_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any] | Streamed], *, bfloat16: Container[str] = (), block: int = BLOCK
) -> None:
    """Write a safetensors file, with the same bytes as the safetensors package.

    Tensors, even transposed ones, are written part by part, so that no whole copy is in memory. Nothing is written
    beside the path, where the package leaves a hidden file if the process dies.

    Args:
        path: the file.
        tensors: by name.
        bfloat16: names of tensors that are the bits of bfloat16 as uint16.
        block: numbers in a part of an array.

    Raises:
        OSError: the file cannot be written, for example on a full disk.
        TypeError: safetensors files have no such dtype.

    >>> save_tensors(Path("a.safetensors"), {"x": np.zeros(3, np.float16)})
    >>> read_header(Path("a.safetensors"))["x"].shape
    (3,)
    """
    dtypes = {name: _name_of(getattr(tensor, "dtype", np.dtype("<f4"))) for name, tensor in tensors.items()}
    dtypes |= {name: "BF16" for name in tensors if name in bfloat16}
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (_ORDER.index(dtypes[name]), name)):
        shape = tensors[name].shape
        begin, end = end, end + _WRITTEN[dtypes[name]].itemsize * math.prod(shape)
        header[name] = {"dtype": dtypes[name], "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    try:
        with path.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for name in header:
                tensor = tensors[name]
                for _, part in blocks(tensor, block) if isinstance(tensor, np.ndarray) else tensor.blocks():
                    file.write(np.ascontiguousarray(part, _WRITTEN[dtypes[name]]).tobytes())
    except OSError as error:
        raise OSError(f"{path}: tensors cannot be written ({error}); free space or write elsewhere") from error


def _name_of(dtype: "np.dtype[Any]") -> str:
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise TypeError(f"a safetensors file has no tensors of {dtype}; give one of {', '.join(map(str, _NAMES))}")
    return name
