"""Tensors of the Open Inference Protocol as bytes, little-endian and row by row."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.tensors import BYTES, DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(array: NDArray[Any]) -> str:
    """The datatype of an array.

    >>> datatype_of(np.zeros(2, np.float32)), datatype_of(np.array([b"a"], object))
    ('FP32', 'BYTES')
    """
    dtype = array.dtype
    if dtype in _NAMES:
        return _NAMES[dtype]
    return BYTES if dtype.kind in "OSU" else _NAMES[dtype.newbyteorder("<")]


def from_bytes(part: memoryview, datatype: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    r"""The array of a tensor's bytes, without a copy.

    Raises:
        Invalid: they are too many or too few, or BYTES whose lengths do not fit.

    >>> from_bytes(memoryview(b"\x01\x00\x00\x00a"), "BYTES", (1,), "text").tolist()
    [b'a']
    """
    size = 1
    for length in shape:
        size *= length
    if datatype == BYTES:
        return _strings(part, size, name).reshape(shape)
    dtype = np.dtype("<u2") if datatype == "BF16" else DTYPES[datatype]
    if len(part) != size * dtype.itemsize:
        raise Invalid(
            f"{name} has {len(part)} bytes, {datatype} {list(shape)} has {size * dtype.itemsize}; give "
            "binary_data_size and shape as the tensor has them"
        )
    array = np.frombuffer(part, dtype).reshape(shape)
    if datatype == "BF16":
        return (array.astype("<u4") << 16).view("<f4")
    if datatype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise Invalid(f"{name} holds a byte that is neither 0 nor 1; BOOL has these alone")
    return array


def to_bytes(array: NDArray[Any]) -> bytes:
    r"""The bytes of an array.

    >>> to_bytes(np.array([b"a"], object))
    b'\x01\x00\x00\x00a'
    """
    if array.dtype in _NAMES:  # on this machine the bytes are little-endian already
        return array.tobytes()
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    texts = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel().tolist()]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def _strings(part: memoryview, count: int, name: str) -> NDArray[Any]:
    wrong = Invalid(f"{name} must be {count} lengths of 4 bytes, each with as many bytes behind it; give it so")
    if count * _LENGTH.size > len(part):
        raise wrong
    found, at = np.empty(count, object), 0
    for number in range(count):
        if at + _LENGTH.size > len(part):
            raise wrong
        end = at + _LENGTH.size + _LENGTH.unpack_from(part, at)[0]
        if end > len(part):
            raise wrong
        found[number], at = bytes(part[at + _LENGTH.size : end]), end
    if at != len(part):
        raise wrong
    return found
