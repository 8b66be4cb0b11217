"""Named tensors of requests and answers: what an operation takes, and whether a caller's arrays are these."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.labels import shown
from sae_runtime.serve.errors import Invalid

Arrays = dict[str, NDArray[Any]]
BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    **{
        f"{sign}INT{8 * size}": np.dtype(f"<{kind}{size}")
        for sign, kind in (("", "i"), ("U", "u"))
        for size in (1, 2, 4, 8)
    },
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""numpy's type of each datatype, little-endian; BYTES and BF16, which have none, are apart."""
_HARMLESS = {"f": "fiu", "i": "iu"}  # kinds of numpy that become another without harm
_OF_ONNX = {"float": "FP32", "float16": "FP16", "double": "FP64", "bfloat16": "BF16", "string": BYTES}


@dataclass(frozen=True)
class Tensor:
    """What a protocol says of an input or an output.

    Attributes:
        name: of the tensor.
        datatype: in the names of the Open Inference Protocol.
        shape: a size for each dimension; -1: any.
        optional: whether a request may lack it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


def of_onnx(kind: str) -> str:
    """The datatype of one of onnxruntime's types.

    >>> of_onnx("tensor(float)"), of_onnx("tensor(int64)")
    ('FP32', 'INT64')
    """
    kind = kind.removeprefix("tensor(").removesuffix(")")
    return _OF_ONNX.get(kind, kind.upper())


def checked(takes: Sequence[Tensor], given: Mapping[str, Any], *, ranks: Mapping[str, int] | None = None) -> Arrays:
    """The arrays that a caller gave, each with its datatype.

    Args:
        takes: the tensors of the operation.
        given: arrays by name; BYTES are arrays of bytes or of texts.
        ranks: other numbers of dimensions that a tensor may have, whose last sizes are those of its shape.

    Raises:
        Invalid: an array is missing, unknown, or of another type or shape.

    >>> checked([Tensor("x", "FP32", (-1, 2))], {"x": np.zeros((3, 2))})["x"].dtype
    dtype('float32')
    """
    known = {tensor.name for tensor in takes}
    for name in given:
        if name not in known:
            raise Invalid(f"there is no input {shown(name)}; the inputs are {', '.join(t.name for t in takes)}")
    arrays: Arrays = {}
    for tensor in takes:
        array = given.get(tensor.name)
        if array is None:
            if tensor.optional:
                continue
            raise Invalid(f"the input {tensor.name} is missing, {_written(tensor)}; give it")
        arrays[tensor.name] = _typed(tensor, array, (ranks or {}).get(tensor.name, len(tensor.shape)))
    return arrays


def _typed(tensor: Tensor, given: Any, other_rank: int) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(given)
    shape = array.shape
    if tensor.datatype == BYTES:
        sound = array.dtype.kind in "OSU"
    else:
        dtype = DTYPES[tensor.datatype]
        sound = array.dtype.kind in _HARMLESS[dtype.kind]
    expected = tensor.shape if len(shape) == len(tensor.shape) else tensor.shape[-other_rank:]
    fits = len(shape) == len(expected) and all(b in (-1, a) for a, b in zip(shape, expected, strict=True))
    if not sound or not fits:
        raise Invalid(
            f"the input {tensor.name} must be {_written(tensor)}, got {array.dtype} {list(shape)}; give it so"
        )
    if tensor.datatype == BYTES:
        return array
    if dtype.kind == "i" and array.dtype.kind == "u" and array.size and int(array.max()) >= 2**63:
        raise Invalid(f"the input {tensor.name} holds {int(array.max())}, which no INT64 holds; give smaller numbers")
    if array.dtype == dtype and array.flags.c_contiguous:
        return array
    with np.errstate(over="ignore"):  # a number too large for float32 becomes Inf, which is refused later
        typed: NDArray[Any] = np.ascontiguousarray(array, dtype).reshape(shape)
    return typed


def _written(tensor: Tensor) -> str:
    return f"{tensor.datatype} [{', '.join('any' if size < 0 else str(size) for size in tensor.shape)}]"


def as_text(value: Any, what: str) -> str:
    """A text of BYTES, which is UTF-8.

    Raises:
        Invalid: it is none.

    >>> as_text(b"a text", "text 0")
    'a text'
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Invalid(f"{what} is not UTF-8 (byte {error.start}); encode it as UTF-8") from None
    if not isinstance(value, str):
        raise Invalid(f"{what} must be bytes of UTF-8, got {type(value).__name__}; encode it as UTF-8")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{what} holds half of a surrogate pair; give whole characters") from None
    return str(value)


def size_of(arrays: Arrays) -> int:
    """Bytes of arrays; of BYTES also those of their texts.

    >>> size_of({"text": as_bytes(["a text"]), "x": np.zeros(2, np.float32)}) > 8 + 8 + len("a text")
    True
    """
    texts = [one for array in arrays.values() if array.dtype.kind == "O" for one in array.ravel().tolist()]
    return sum(array.nbytes for array in arrays.values()) + sum(map(sys.getsizeof, texts))


def as_bytes(texts: Sequence[str]) -> NDArray[Any]:
    """Texts as a tensor of BYTES: an array of objects, bytes of UTF-8.

    >>> as_bytes(["a", ""]).tolist()
    [b'a', b'']
    """
    array = np.empty(len(texts), object)
    array[:] = [text.encode() for text in texts]
    return array
