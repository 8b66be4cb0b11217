"""ONNX graphs, read without onnx and without their weights.

A graph is a protobuf message ModelProto. Its field 7 is the graph itself, its fields 14 are the metadata.
`read_metadata` takes any graph. `read_model` takes what our exporter writes, and refuses every other field by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sae_runtime.bundle.protobuf import Fields, graph_fields, mapped_graph, packed

_MOST_FIELDS = 40_000  # of a model that `read_model` takes; the largest of ours has 3,000
_MOST_BESIDE = 100_000  # fields beside the graph in a file, of which metadata are some
_MOST_OF_HOST = 4_000_000  # fields of the nodes of a host; one of 1,000 layers has fewer
_DEEPEST = 3  # graphs inside graphs

# The fields that `read_model` takes, by number. Those that compute nothing are "": names of nodes and of producers.
# A name that begins with "-" is for the message alone.
_MODEL = {
    1: "ir_version",
    2: "",
    3: "",
    4: "",
    5: "",
    6: "",
    7: "graph",
    8: "opsets",
    20: "-training",
    25: "-functions",
}
_OPSET = {1: "domain", 2: "version"}
_GRAPH = {1: "nodes", 2: "", 5: "initializers", 10: "", 11: "inputs", 12: "outputs", 13: "types", 15: "-sparse weights"}
_NODE = {1: "inputs", 2: "outputs", 3: "", 4: "kind", 5: "attributes", 6: "", 7: "domain"}
_ATTRIBUTE = {1: "name", 2: "f", 3: "i", 4: "s", 6: "g", 8: "ints", 13: "", 20: "type"}
_TENSOR = {1: "dims", 2: "dtype", 8: "name", 9: "raw", 12: "", 13: "external", 14: "place"}
_ENTRY = {1: "key", 2: "value"}
_VALUE = {1: "name", 2: "type", 3: ""}
_TYPE = {1: "tensor", 6: ""}
_TENSOR_TYPE = {1: "dtype", 2: "shape"}
_SHAPE = {1: "dims"}
_DIM = {1: "size", 2: "name", 3: ""}


class Tensor(NamedTuple):
    """An initializer: its numbers, or the file and the place in the file where they are."""

    name: str
    dtype: int
    dims: tuple[int, ...]
    raw: bytes
    external: Mapping[str, str]


class Value(NamedTuple):
    """An input or output, or the type of an initializer; a dimension is a size or a name."""

    name: str
    dtype: int
    dims: tuple[int | str, ...] | None


class Node(NamedTuple):
    """A node; an attribute is a number, bytes, whole numbers, or a graph, each with its ONNX type."""

    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: "Mapping[str, tuple[int, int | bytes | tuple[int, ...] | Graph]]"


class Graph(NamedTuple):
    """A graph, or the graph in an attribute of a node."""

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    initializers: tuple[Tensor, ...]
    types: tuple[Value, ...]


class Model(NamedTuple):
    """A graph with the versions of its format and of its operators, (domain, version)."""

    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    graph: Graph


def read_metadata(path: Path) -> dict[str, str]:
    """All metadata of a graph, by key.

    >>> read_metadata(Path(bundle_path) / "encode.onnx")
    {}

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX graph.
    """
    fields = Fields(_MOST_BESIDE)
    with mapped_graph(path) as data:
        found = list(fields.of(data))
        if 7 not in dict(found):
            raise ValueError("there is no graph in it")
        entries = [
            dict(fields.of(data, at.start, at.stop)) for number, at in found if number == 14 and isinstance(at, slice)
        ]
        texts = [
            {number: data[at].decode() for number, at in entry.items() if isinstance(at, slice)} for entry in entries
        ]
        return {text.get(1, ""): text.get(2, "") for text in texts}


def read_operators(path: Path) -> set[str]:
    """The kinds of operators of any graph, without those inside branches and functions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX graph.

    >>> "MatMul" in read_operators(Path(bundle_path) / "encode.onnx")
    True
    """
    fields = Fields(_MOST_OF_HOST)
    kinds = set()
    with mapped_graph(path) as data:
        for number, node in graph_fields(fields, data):
            if number == 1 and isinstance(node, slice):
                entries = fields.of(data, node.start, node.stop)
                kinds |= {data[at].decode() for key, at in entries if key == 4 and isinstance(at, slice)}
    return kinds


def read_ports(path: Path) -> tuple[list[str], list[str]]:
    """The names of the inputs and of the outputs of any graph.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX graph.

    >>> read_ports(Path(bundle_path) / "encode.onnx")
    (['x', 'threshold', 'slots'], ['indices', 'values'])
    """
    fields = Fields(_MOST_OF_HOST)
    names: dict[int, list[str]] = {11: [], 12: []}  # of inputs and outputs
    with mapped_graph(path) as data:
        for number, value in graph_fields(fields, data):
            if number in names and isinstance(value, slice):
                entries = fields.of(data, value.start, value.stop)
                names[number] += [data[at].decode() for key, at in entries if key == 1 and isinstance(at, slice)]
    return names[11], names[12]


def read_model(data: bytes) -> Model:
    """A graph of a bundle.

    Raises:
        ValueError: the bytes are not a graph, or hold something that our exporter never writes.

    >>> model = read_model((Path(bundle_path) / "encode.onnx").read_bytes())
    >>> model.ir_version, model.opsets, model.graph.nodes[0].kind, model.graph.inputs[0]
    (10, (('', 21),), 'Shape', Value(name='x', dtype=1, dims=('n', 24)))
    """
    return _Reader().model(data)


class _Reader:
    """Messages of one model."""

    def __init__(self) -> None:
        self._fields = Fields(_MOST_FIELDS)

    def model(self, data: bytes) -> Model:
        fields = self._message(data, _MODEL)
        opsets = [self._message(_bytes(part), _OPSET) for part in fields.get("opsets", [])]
        return Model(
            _number(fields, "ir_version"),
            tuple((_name(opset, "domain"), _number(opset, "version")) for opset in opsets),
            self._graph(_last(fields, "graph"), 0),
        )

    def _graph(self, data: bytes, depth: int) -> Graph:
        if depth > _DEEPEST:
            raise ValueError(f"it has graphs in graphs, more than {_DEEPEST} deep")
        fields = self._message(data, _GRAPH)
        return Graph(
            tuple(self._node(_bytes(part), depth) for part in fields.get("nodes", [])),
            self._values(fields, "inputs"),
            self._values(fields, "outputs"),
            tuple(self._tensor(_bytes(part)) for part in fields.get("initializers", [])),
            self._values(fields, "types"),
        )

    def _node(self, data: bytes, depth: int) -> Node:
        fields = self._message(data, _NODE)
        attributes = {}
        for part in fields.get("attributes", []):
            attribute = self._message(_bytes(part), _ATTRIBUTE)
            attributes[_name(attribute, "name")] = (_number(attribute, "type"), self._content(attribute, depth))
        inputs, outputs = (tuple(_text(value) for value in fields.get(what, [])) for what in ("inputs", "outputs"))
        return Node(_name(fields, "kind"), _name(fields, "domain"), inputs, outputs, attributes)

    def _content(self, attribute: "_Message", depth: int) -> "int | bytes | tuple[int, ...] | Graph":
        given = [name for name in ("f", "i", "s", "ints", "g") if name in attribute]
        if len(given) > 1:
            raise ValueError("an attribute has several values")
        if given == ["g"]:
            return self._graph(_last(attribute, "g"), depth + 1)
        if given and given != ["ints"]:
            return attribute[given[0]][-1]
        return _numbers(attribute, "ints")

    def _tensor(self, data: bytes) -> Tensor:
        fields = self._message(data, _TENSOR)
        entries = [self._message(_bytes(part), _ENTRY) for part in fields.get("external", [])]
        external = {_name(entry, "key"): _name(entry, "value") for entry in entries}
        if len(external) != len(entries) or bool(entries) != (_number(fields, "place", 0) == 1):
            raise ValueError("a tensor does not say where its numbers are")
        raw = _last(fields, "raw") if "raw" in fields else b""
        return Tensor(_name(fields, "name"), _number(fields, "dtype"), _numbers(fields, "dims"), raw, external)

    def _values(self, fields: "_Message", what: str) -> tuple[Value, ...]:
        return tuple(self._value(_bytes(part)) for part in fields.get(what, []))

    def _value(self, data: bytes) -> Value:
        fields = self._message(data, _VALUE)
        name = _name(fields, "name")
        if "type" not in fields:
            return Value(name, 0, None)
        tensor = self._message(_last(self._message(_last(fields, "type"), _TYPE), "tensor"), _TENSOR_TYPE)
        if "shape" not in tensor:
            return Value(name, _number(tensor, "dtype", 0), None)
        dims = [self._message(_bytes(part), _DIM) for part in self._message(_last(tensor, "shape"), _SHAPE)["dims"]]
        sizes = tuple(_number(dim, "size") if "size" in dim else _name(dim, "name") for dim in dims)
        return Value(name, _number(tensor, "dtype", 0), sizes)

    def _message(self, data: bytes, names: Mapping[int, str]) -> "_Message":
        fields: _Message = {"dims": []} if names is _SHAPE else {}
        for number, value in self._fields.of(data):
            name = names.get(number, "-")
            if name in fields:
                fields[name].append(data[value] if isinstance(value, slice) else value)
            elif name[:1] == "-":
                raise ValueError(f"it has {name[1:] or f'a field {number}'}")
            else:
                fields[name] = [data[value] if isinstance(value, slice) else value]
        return fields


_Message = dict[str, list[int | bytes]]


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where a message is expected")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode()


def _last(fields: _Message, name: str) -> bytes:
    """The content of a field that stands once."""
    values = fields.get(name, [])
    if len(values) != 1:
        raise ValueError(f"it has {len(values)} times the field {name}, expected once")
    return _bytes(values[0])


def _name(fields: _Message, name: str) -> str:
    return _last(fields, name).decode() if name in fields else ""


def _number(fields: _Message, name: str, default: int | None = None) -> int:
    if name not in fields and default is not None:
        return default
    values = fields.get(name, [])
    if len(values) != 1 or not isinstance(values[0], int):
        raise ValueError(f"it lacks the number {name}")
    return _signed(values[0])


def _numbers(fields: _Message, name: str) -> tuple[int, ...]:
    """Whole numbers, each in its own field or packed in one."""
    numbers: list[int] = []
    for value in fields.get(name, []):
        if isinstance(value, int):
            numbers.append(_signed(value))
            continue
        for number in packed(value):
            numbers.append(_signed(number))
            if len(numbers) > _MOST_FIELDS:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} numbers in a list")
    return tuple(numbers)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
