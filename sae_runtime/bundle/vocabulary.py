"""How many ids a host's graph knows, by the table of words that it looks them up in, read without onnx."""

import re
from pathlib import Path
from typing import Any

from sae_runtime.bundle.protobuf import Bytes, Fields, graph_fields, mapped_graph, packed

_MOST_FIELDS = 10_000_000  # some ten times those of the largest hosts
_NODE, _TENSOR, _INPUT = 1, 5, 11  # of a graph
_GATHERS = ("Gather", "GatherBlockQuantized")
_CARRIES = ("Cast", "Identity", "Reshape", "Unsqueeze", "DequantizeLinear", "DynamicQuantizeLinear")


def read_vocabulary(path: Path) -> int | None:
    """The rows of the table in which a graph looks up the ids of tokens; None: there is none that is known.

    >>> from pathlib import Path
    >>> read_vocabulary(Path(host_path))
    50

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an ONNX graph.
    """
    with mapped_graph(path) as data:
        fields = Fields(_MOST_FIELDS)
        rows: dict[str, int] = {}  # of each tensor that holds weights, or is made of one
        comes_from: dict[str, str] = {}  # the input of the graph that a value carries
        found: list[tuple[str, str]] = []  # table and ids of each look-up
        nodes, inputs = [], []
        for number, at in graph_fields(fields, data):
            if isinstance(at, slice) and number == _TENSOR:
                name, dims = _tensor(fields, data, at)
                rows |= {name: dims[0]} if dims else {}
            elif isinstance(at, slice) and number == _NODE:
                nodes.append(_node(fields, data, at))
            elif isinstance(at, slice) and number == _INPUT:
                inputs += [_text(data, value) for key, value in fields.of(data, at.start, at.stop) if key == 1]
        comes_from = {name: name for name in inputs if name not in rows}
        for kind, given, made in nodes:
            if kind in _GATHERS and len(given) > 1:
                found.append((given[0], given[1]))
            elif kind in _CARRIES and given and made:
                rows |= {made[0]: rows[given[0]]} if given[0] in rows else {}
                comes_from |= {made[0]: comes_from[given[0]]} if given[0] in comes_from else {}
        known = [rows[table] for table, ids in found if table in rows and is_of_words(comes_from.get(ids, ""))]
        return known[0] if known else None


def is_of_words(name: str) -> bool:
    """Whether an input of this name takes the ids of tokens.

    >>> is_of_words("decoder_input_ids"), is_of_words("token_type_ids")
    (True, False)
    """
    return name.endswith("ids") and not re.search("position|type|segment", name)


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
