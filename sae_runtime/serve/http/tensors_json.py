"""Tensors of the Open Inference Protocol as JSON lists."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.tensors import as_bytes

_NUMBERS: dict[str, tuple[set[type], str]] = {
    "f": ({int, float}, "numbers"),
    "i": ({int}, "whole numbers"),
    "u": ({int}, "whole numbers"),
}


def from_lists(data: Any, dtype: np.dtype[Any] | None, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """The array of a JSON list, flat or nested as its shape says.

    Args:
        data: the value of `data`.
        dtype: numpy's type; None: texts.
        shape: of the tensor.
        name: of the tensor, for messages.

    Raises:
        Invalid: it is no list of such values, or has another shape.

    >>> from_lists([[1, 2.5]], np.dtype(np.float32), (1, 2), "x")
    array([[1. , 2.5]], dtype=float32)
    """
    flat = _flat(data, shape, name)
    kinds = set(map(type, flat))
    if dtype is None:
        if kinds - {str}:
            raise Invalid(f"data of {name} must be texts, as its datatype BYTES says; give strings")
        return as_bytes(flat).reshape(shape)
    if dtype.kind == "b":
        if kinds - {bool}:
            raise Invalid(f"data of {name} must be true and false, as its datatype BOOL says; give these")
        return np.array(flat, dtype).reshape(shape)
    allowed, said = _NUMBERS[dtype.kind]
    if kinds - allowed:
        raise Invalid(f"data of {name} must be {said}, as its datatype says; give these")
    try:
        with np.errstate(over="raise"):
            wide = np.array(flat, np.float64 if dtype.kind == "f" else np.uint64 if dtype.kind == "u" else np.int64)
            if dtype.kind != "f" and wide.size and not _holds(dtype, wide):
                raise OverflowError
            if dtype.kind == "f" and not np.isfinite(wide).all():
                raise OverflowError
            return wide.astype(dtype).reshape(shape)
    except (OverflowError, FloatingPointError):
        raise Invalid(f"data of {name} holds a number that its datatype cannot hold; give smaller ones") from None


def to_lists(array: NDArray[Any], name: str) -> list[Any]:
    """The flat JSON list of an array.

    Raises:
        Invalid: it holds bytes that are no text.

    >>> to_lists(np.array([[1, 2]]), "indices")
    [1, 2]
    """
    listed: list[Any] = array.ravel().tolist()
    if array.dtype.kind != "O":
        return listed
    try:
        return [one.decode() if isinstance(one, bytes) else str(one) for one in listed]
    except UnicodeDecodeError:
        raise Invalid(f"{name} holds bytes that are no UTF-8; ask for it as binary") from None


def _flat(data: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    if not isinstance(data, list):
        raise Invalid(f"data of {name} must be a list; give one")
    size = 1
    for length in shape:
        size *= length
    if data and isinstance(data[0], list):
        for level, length in enumerate(shape):
            if level:
                if set(map(type, data)) - {list} or any(len(part) != length for part in data):
                    raise Invalid(f"data of {name} is not nested as its shape {list(shape)} says; give it so, or flat")
                data = list(itertools.chain.from_iterable(data))
            elif len(data) != length:
                break
    if len(data) != size:
        raise Invalid(f"data of {name} has {len(data)} values, its shape {list(shape)} says {size}; give as many")
    flat: list[Any] = data
    return flat


def _holds(dtype: np.dtype[Any], wide: NDArray[Any]) -> bool:
    info = np.iinfo(dtype)
    return int(wide.min()) >= info.min and int(wide.max()) <= info.max
