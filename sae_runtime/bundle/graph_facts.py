"""What the nodes of a host's graph tell without onnx: its operators, and how many words its table of words has."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.bundle.protobuf import Bytes, Fields, mapped_graph, packed

_MOST_FIELDS = 10_000_000  # some ten times those of the largest hosts
_GRAPH, _NODE, _TENSOR, _INPUT = 7, 1, 5, 11  # of a model, and of a graph
_GATHERS = ("Gather", "GatherBlockQuantized")
_CARRIES = ("Cast", "Identity", "Reshape", "Unsqueeze", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class GraphFacts:
    """What the nodes of a graph tell, without those in branches.

    Attributes:
        operators: the kinds of its nodes.
        words: the rows of the table that the ids are looked up in, by the name of the input of ids.
    """

    operators: frozenset[str]
    words: dict[str, int]


def read_graph_facts(path: Path) -> GraphFacts:
    """Read the nodes of a graph, and of its weights only the sizes.

    >>> from pathlib import Path
    >>> read_graph_facts(Path(host_path)).words
    {'input_ids': 50}

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX graph.
    """
    with mapped_graph(path) as data:
        fields = Fields(_MOST_FIELDS)
        operators: set[str] = set()
        rows: dict[str, int] = {}  # of each tensor that holds weights, or is made of one
        comes_from: dict[str, str] = {}  # the input of the graph that a value carries
        found: list[tuple[str, str]] = []  # table and ids of each look-up
        nodes, inputs = [], []
        for number, at in (part for graph in _parts(fields, data, _GRAPH) for part in fields.of(data, *graph)):
            if isinstance(at, slice) and number == _TENSOR:
                name, dims = _tensor(fields, data, at)
                rows |= {name: dims[0]} if dims else {}
            elif isinstance(at, slice) and number == _NODE:
                nodes.append(_node(fields, data, at))
            elif isinstance(at, slice) and number == _INPUT:
                inputs += [_text(data, value) for key, value in fields.of(data, at.start, at.stop) if key == 1]
        comes_from = {name: name for name in inputs if name not in rows}
        for kind, given, made in nodes:
            operators.add(kind)
            if kind in _GATHERS and len(given) > 1:
                found.append((given[0], given[1]))
            elif kind in _CARRIES and given and made:
                rows |= {made[0]: rows[given[0]]} if given[0] in rows else {}
                comes_from |= {made[0]: comes_from[given[0]]} if given[0] in comes_from else {}
        words: dict[str, int] = {}
        for table, ids in found:
            if table in rows and ids in comes_from:
                words.setdefault(comes_from[ids], rows[table])
        return GraphFacts(frozenset(operators), words)


def _parts(fields: Fields, data: Bytes, wanted: int) -> Iterator[tuple[int, int]]:
    for number, at in fields.of(data):
        if number == wanted and isinstance(at, slice):
            yield at.start, at.stop


def _node(fields: Fields, data: Bytes, where: slice) -> tuple[str, list[str], list[str]]:
    """Kind, inputs and outputs."""
    kind, given, made = "", [], []
    for number, at in fields.of(data, where.start, where.stop):
        if number == 1:
            given.append(_text(data, at))
        elif number == 2:
            made.append(_text(data, at))
        elif number == 4:
            kind = _text(data, at)
    return kind, given, made


def _tensor(fields: Fields, data: Bytes, where: slice) -> tuple[str, list[int]]:
    """Name and sizes."""
    name, dims = "", list[int]()
    for number, at in fields.of(data, where.start, where.stop):
        if number == 1:
            dims += [at] if isinstance(at, int) else packed(data, at.start, at.stop)
        elif number == 8:
            name = _text(data, at)
    return name, dims


def _text(data: Bytes, at: Any) -> str:
    return bytes(data[at]).decode() if isinstance(at, slice) else ""
