"""The metadata of an ONNX graph, read without onnx and without its weights.

A graph is a protobuf message ModelProto, whose field 7 is the graph itself and whose fields 14 are the metadata.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_GRAPH, _ENTRY, _KEY, _VALUE = 7, 14, 1, 2
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


def read_metadata(path: Path) -> dict[str, str]:
    """All metadata of a graph, by key.

    >>> read_metadata(Path(bundle_path) / "encode.onnx")
    {}

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX graph.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a graph, .onnx")
    try:
        with path.open("rb") as file:
            fields = [(number, data) for number, data in _fields(file, path.stat().st_size, {_ENTRY})]
        if _GRAPH not in dict(fields):
            raise ValueError("there is no graph in it")
        entries = [
            dict(_fields(BytesIO(data), len(data), {_KEY, _VALUE})) for number, data in fields if number == _ENTRY
        ]
        return {entry.get(_KEY, b"").decode(): entry.get(_VALUE, b"").decode() for entry in entries}
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable ONNX graph ({error}); export it again") from error


def _fields(file: BinaryIO, size: int, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of the fields of a message; empty bytes for those that are not wanted, which are skipped."""
    while file.tell() < size:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _varint(file)
            yield number, b""
            continue
        if kind not in (_EIGHT_BYTES, _BYTES, _FOUR_BYTES):
            raise ValueError(f"field {number} has the wire type {kind}")
        length = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind) or _varint(file)
        if file.tell() + length > size:
            raise EOFError(f"field {number} ends after the file")
        if number in wanted:
            yield number, file.read(length)
        else:
            file.seek(length, 1)
            yield number, b""


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("it ends too early")
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
    raise ValueError("a number is too long")
