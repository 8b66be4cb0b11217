"""Safetensors files, mapped without a copy and without torch, with the byte offset of every tensor.

ONNX graphs refer to a tensor by its offset in the file, which the safetensors package does not give, and harvested
activations may be bfloat16, which its numpy side cannot read. The package writes most files; weights that are large,
transposed or still in other files are streamed.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

# bfloat16 has no numpy type: it is mapped as its 16 bits and widened by to_float32.
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
_MAX_HEADER = 100_000_000  # bytes, as in the safetensors package
BLOCK = 1 << 21  # numbers that are copied and written at once


@dataclass(frozen=True)
class TensorSpec:
    """Where a tensor is in its file: `offset` and `size` in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Specs of all tensors of a safetensors file, by name.

    Raises:
        ValueError: the file is not safetensors, is truncated, or its header points outside of it.

    >>> save_tensors(Path("a.safetensors"), {"x": np.zeros((2, 3), np.float32)})
    >>> read_header(Path("a.safetensors"))["x"]
    TensorSpec(dtype='F32', shape=(2, 3), offset=72, size=24)
    """
    file_size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file_size < 8 or length > min(file_size - 8, _MAX_HEADER):
            raise ValueError(f"{path} is not a whole safetensors file: its header does not fit; copy it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
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
        raise ValueError(f"dtype {dtype}, expected one of {', '.join(_DTYPES)}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("shape and offsets must be whole numbers")
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"shape {list(shape)} of {dtype} does not fill {end - begin} bytes")
    return TensorSpec(dtype, shape, data_start + begin, end - begin)


def map_tensor(path: Path, spec: TensorSpec) -> NDArray[Any]:
    """The tensor as a read-only view of the file; bfloat16 comes as uint16.

    >>> save_tensors(Path("a.safetensors"), {"x": np.arange(3, dtype=np.float32)})
    >>> np.array(map_tensor(Path("a.safetensors"), read_header(Path("a.safetensors"))["x"]))
    array([0., 1., 2.], dtype=float32)
    """
    if spec.size == 0:
        return np.zeros(spec.shape, _DTYPES[spec.dtype])
    return np.memmap(path, _DTYPES[spec.dtype], "r", spec.offset, spec.shape)


def save_tensors(
    path: Path, tensors: Mapping[str, Any], save_file: Callable[..., None] = safetensors.numpy.save_file
) -> None:
    """Write a safetensors file.

    Args:
        path: the file.
        tensors: by name, arrays or tensors of torch.
        save_file: of safetensors.numpy for arrays, or of safetensors.torch for tensors of torch.

    Raises:
        OSError: the file cannot be written, for example on a full disk.

    >>> save_tensors(Path("a.safetensors"), {"x": np.zeros(3, np.float32)})
    """
    # safetensors.numpy writes memory in its own order, which is wrong for a transposed array.
    laid_out = {name: np.asarray(t, order="C") if isinstance(t, np.ndarray) else t for name, t in tensors.items()}
    try:
        save_file(laid_out, path)
    except safetensors.SafetensorError as error:  # its class is neither OSError nor ValueError
        raise OSError(f"{path.parent}: tensors cannot be written ({error}); free space or write elsewhere") from error


class Streamed(Protocol):
    """A tensor that comes in parts, so that the whole is never in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Consecutive rows with their numbers; a vector is one row."""


def blocks(array: NDArray[Any], size: int = BLOCK) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Consecutive rows of a matrix, each part of at most `size` numbers or one row; a vector is one row.

    >>> [rows for rows, _ in blocks(np.zeros((5, 3)), size=6)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    matrix = array.reshape(1, -1) if array.ndim < 2 else array
    step = max(size // max(matrix.shape[1], 1), 1)
    for begin in range(0, len(matrix), step):
        yield slice(begin, min(begin + step, len(matrix))), matrix[begin : begin + step]


def stream_tensors(path: Path, tensors: Mapping[str, NDArray[np.float32] | Streamed], *, block: int = BLOCK) -> None:
    """Write a safetensors file of float32 vectors and matrices, byte for byte that of the safetensors package.

    Tensors, transposed ones too, are written part by part, so that no copy of a whole one is in memory.

    Args:
        path: the file.
        tensors: by name.
        block: numbers of an array that are copied and written at once.

    Raises:
        OSError: the file cannot be written, for example on a full disk.

    >>> stream_tensors(Path("weights.safetensors"), {"b": np.ones(3, np.float32)})
    >>> read_header(Path("weights.safetensors"))["b"].shape
    (3,)
    """
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(tensors):
        shape = tensors[name].shape
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    try:
        with path.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for name in header:
                tensor = tensors[name]
                for _, part in blocks(tensor, block) if isinstance(tensor, np.ndarray) else tensor.blocks():
                    file.write(np.ascontiguousarray(part, "<f4").tobytes())
    except OSError as error:
        raise OSError(f"{path.parent}: tensors cannot be written ({error}); free space or write elsewhere") from error
