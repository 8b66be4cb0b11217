"""Fields of protobuf messages, the bytes of ONNX files, read without protobuf's library.

Readers go from field to field. The bytes of a field are not read, only where they are, so that weights cost nothing.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Bytes = bytes | mmap.mmap

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_GRAPH = 7  # of an ONNX model
_SIZES = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


@contextmanager
def mapped_graph(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of an ONNX file, for a block that reads it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or the block raised a ValueError.

    >>> with mapped_graph(Path(bundle_path) / "encode.onnx") as data:
    ...     number, where = next(Fields(most=1000).of(data))
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a graph, .onnx")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except ValueError as error:
        raise ValueError(f"{path} is not a readable ONNX graph ({error}); export it again") from error


class Fields:
    """The fields of the messages of one file.

    It counts them, so that no file keeps a reader for long.

    Args:
        most: number of fields in all messages together.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def of(self, data: Bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int | slice]]:
        """Number and value of each field of a message: a whole number, or where the bytes are in `data`.

        Raises:
            ValueError: the bytes are no message, or the file has too many fields.

        >>> list(Fields(most=2).of(bytes([8, 150, 1, 18, 1, 65])))
        [(1, 150), (2, slice(5, 6, None))]
        """
        at, end = start, len(data) if end is None else end
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {self._most:,} fields")
            if (key := data[at]) < 0x80:  # as nearly all are, and a call for each would take longer than the rest
                at += 1
            else:
                key, at = varint(data, at, end)
                if key >> 32:  # onnxruntime drops these bits, and would read another field than this
                    raise ValueError("a field has no number")
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, at = varint(data, at, end)
                yield number, value
                continue
            if kind == _BYTES:
                if at < end and (length := data[at]) < 0x80:
                    at += 1
                else:
                    length, at = varint(data, at, end)
            elif kind in _SIZES:
                length = _SIZES[kind]
            else:
                raise ValueError(f"field {number} has the wire type {kind}")
            if at + length > end:
                raise ValueError(f"field {number} ends too late")
            yield number, slice(at, at + length)
            at += length


def graph_fields(fields: Fields, data: Bytes) -> Iterator[tuple[int, int | slice]]:
    """The fields of the graph in an ONNX model, as `Fields.of` gives them.

    >>> list(graph_fields(Fields(9), bytes([7 << 3 | 2, 2, 1 << 3, 5])))
    [(1, 5)]
    """
    for number, graph in fields.of(data):
        if number == _GRAPH and isinstance(graph, slice):
            yield from fields.of(data, graph.start, graph.stop)


def packed(data: Bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    """The whole numbers that stand one after another in a field.

    >>> list(packed(bytes([24, 150, 1])))
    [24, 150]
    """
    at, end = start, len(data) if end is None else end
    while at < end:
        number, at = varint(data, at, end)
        yield number


def varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """A whole number, and where the next one begins.

    Raises:
        ValueError: it does not end before `end`, or has more than 64 bits.

    >>> varint(bytes([150, 1]), 0, 2)
    (150, 2)
    """
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it ends too early")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number is too long")
