"""The files that an ONNX graph reads: every place in it that names one, checked before any program opens the graph.

A graph keeps the numbers of a tensor in itself or in another file, and names the file. A stranger's graph may name any
file of this machine, so a location is taken only if it leads to a file in the graph's own folder, or to the blobs of
the Hub cache that the folder is in. Tensors are initializers, dense or sparse, and attributes of nodes, in the graph,
in the graphs inside it and in its functions.
"""

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sae_runtime.bundle.hub import leaves
from sae_runtime.bundle.protobuf import Bytes, Fields, mapped_graph, packed
from sae_runtime.bundle.siblings import repaired
from sae_runtime.bundle.typed_json import shown

# The messages of onnx.proto that lead to tensors: the kinds of their fields by number.
_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_DIMS, _TYPE, _NAME, _DATA, _PLACE = 1, 2, 8, 13, 14  # of a tensor
_ELSEWHERE = 1  # the place of a tensor whose numbers are in another file
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}
_MOST_FIELDS = 10_000_000  # some ten times those of the largest hosts
_LONGEST = 1024  # characters of a location
_MEMORY = "_ORT_MEM_ADDR_"  # in a location, it makes onnxruntime read its own memory


@dataclass
class External:
    """A tensor in another file: the entries with which the graph names the place, as they stand there."""

    name: str = ""
    entries: list[tuple[str, str]] = field(default_factory=list)
    dims: list[int] = field(default_factory=list)
    dtype: int = 0
    is_elsewhere: bool = False


def check_external(graph: Path) -> list[Path]:
    """Check every place at which a graph reads another file, and open none of these files. Gives the files.

    >>> [file.name for file in check_external(Path(bundle_path) / "encode.onnx")]
    ['sae_weights.safetensors']

    Raises:
        FileNotFoundError: the graph, or a file that it names, does not exist.
        ValueError: the file is no ONNX graph, a location leads out of the graph's folder or to something that is no
            file, or the place is not inside the file.
    """
    with mapped_graph(graph) as data:
        found = list(_externals(data))
    files: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    for tensor in found:
        entries = dict(tensor.entries)
        if len(entries) < len(tensor.entries) or "location" not in entries:
            raise ValueError(f"{graph} does not say once where its tensor {shown(tensor.name)} is; export it again")
        location = entries["location"]
        if location not in sizes:
            files[location] = located(graph, location)
            sizes[location] = files[location].stat().st_size
        _check_range(graph, tensor, entries, sizes[location])
    return list(files.values())


def external_files(graph: Path) -> set[str]:
    """The locations of the files that a graph names, unchecked: paths from its folder.

    >>> external_files(Path(bundle_path) / "encode.onnx")
    {'sae_weights.safetensors'}

    Raises:
        FileNotFoundError: the graph does not exist.
        ValueError: the file is no ONNX graph.
    """
    with mapped_graph(graph) as data:
        return {text for tensor in _externals(data) for key, text in tensor.entries if key == "location"}


def located(graph: Path, location: str) -> Path:
    """The file at a location that a graph names, by its path from the graph's folder.

    >>> located(Path("model/host.onnx"), "../secret")
    Traceback (most recent call last):
    ValueError: model/host.onnx reads '../secret', which is not in its folder; put the file there and export it again

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: the location is not a path from the folder, leads out of it, or is no file.
    """
    path = PurePosixPath(location)
    plain = 0 < len(location) <= _LONGEST and not set(location) & set("\0\\") and "://" not in location
    plain = plain and _MEMORY not in location
    if not plain or path.is_absolute() or ".." in path.parts:
        raise _outside(graph, location)
    file = repaired(graph.parent / path)
    try:
        kind = os.stat(file).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing, which holds weights of the graph; copy the model again") from None
    except OSError as error:
        raise ValueError(f"{graph} reads {shown(location)}: {error.strerror}; copy the model again") from error
    if leaves(file, graph.parent):
        raise _outside(graph, location)
    if not stat.S_ISREG(kind):  # reading a pipe could wait for ever
        raise ValueError(f"{graph} reads {shown(location)}, which is not a file; copy the model again")
    return file


def _outside(graph: Path, location: str) -> ValueError:
    return ValueError(
        f"{graph} reads {shown(location)}, which is not in its folder; put the file there and export it again"
    )


def _check_range(graph: Path, tensor: External, entries: dict[str, str], size: int) -> None:
    """Refuse a place that is not inside the file."""
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise ValueError(f"{graph}: the {key} of {shown(tensor.name)} is {shown(text)}; export it again")
        numbers[key] = int(text)
    needed = numbers["length"] or -(-math.prod(tensor.dims) * _BITS.get(tensor.dtype, 0) // 8)
    if numbers["offset"] + needed > size:
        raise ValueError(
            f"{graph} reads {shown(tensor.name)} from bytes {numbers['offset']:,} to "
            f"{numbers['offset'] + needed:,} of {shown(entries['location'])}, which has {size:,}; copy the model again"
        )


def _externals(data: Bytes) -> Iterator[External]:
    """The tensors of a model that are in other files. Nothing is read but the keys and lengths around them."""
    fields, to_read, is_model = Fields(_MOST_FIELDS), [("model", 0, len(data))], False
    while to_read:
        kind, start, end = to_read.pop()
        tensor = External()
        for number, value in fields.of(data, start, end):
            if kind == "tensor":
                _note(tensor, data, number, value, fields)
            elif isinstance(value, slice) and number in _WITHIN[kind]:
                is_model = is_model or _WITHIN[kind][number] == "graph"
                to_read.append((_WITHIN[kind][number], value.start, value.stop))
        if tensor.is_elsewhere or tensor.entries:
            yield tensor
    if not is_model:
        raise ValueError("there is no graph in it")


def _note(tensor: External, data: Bytes, number: int, value: int | slice, fields: Fields) -> None:
    """Keep a field of a tensor."""
    if isinstance(value, int):
        if number == _DIMS:
            tensor.dims.append(value)
        elif number == _TYPE:
            tensor.dtype = value
        elif number == _PLACE:
            tensor.is_elsewhere = value & 0xFFFFFFFF == _ELSEWHERE
    elif number == _NAME:
        tensor.name = data[value].decode(errors="replace")
    elif number == _DIMS:  # packed
        tensor.dims.extend(packed(data, value.start, value.stop))
    elif number == _DATA:
        parts = {key: data[part] for key, part in fields.of(data, value.start, value.stop) if isinstance(part, slice)}
        tensor.entries.append((parts.get(1, b"").decode(), parts.get(2, b"").decode()))
