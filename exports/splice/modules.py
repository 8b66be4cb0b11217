"""The torch modules that the nodes of a graph come from.

torch's exporter writes the modules of every node into its metadata. Other exporters name nodes by path,
/model/layers.3/mlp/down_proj/MatMul, which says the same. An optimiser replaces nodes by nodes without such a name, and
some of these do what several modules did. Of them, the graph still tells these facts:

- A parameter has the name of its module, and a norm or a bias belongs to the module of its parameters.
- A module that is called once has read all that it reads before it gives anything. So a node on a way from one of its
  nodes to another is its own.
- A node may belong to every module that its nearest named neighbours belong to, and to no other.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from sae_runtime.bundle.transformer_lens import listed
from sae_runtime.exports.splice.fused_norm import Role, role_of

SCOPES = "pkg.torch.onnx.name_scopes"
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "EmbedLayerNormalization")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

Scopes = tuple[str, ...]  # modules around a node, the outermost first
_Chains = dict[ir.Node, set[Scopes]]


@dataclass(frozen=True)
class Where:
    """The modules that a node belongs to.

    Attributes:
        sure: those that hold all that the node does.
        maybe: those that may hold it, or a part of what it does.
        calls: by module, the number of its call that the node belongs to, where a name tells it.
        named: whether the node's own name tells its modules.
    """

    sure: Scopes
    maybe: frozenset[str] = frozenset()
    calls: Mapping[str, int] = field(default_factory=dict)
    named: bool = False

    def within(self, module: str) -> bool | None:
        """Whether the node is inside a module, as a whole; None where this cannot be told."""
        if module in self.sure:
            return True
        fits = not self.sure or module.startswith(f"{self.sure[-1]}.")
        return None if fits and module in self.maybe else False


def activations(graph: ir.Graph) -> frozenset[ir.Value]:
    """The arrays of float numbers, of two dimensions or more, that depend on an input of the graph."""
    live: set[ir.Value] = set(graph.inputs)
    for node in graph:
        if any(value in live for value in node.inputs):
            live.update(node.outputs)
    return frozenset(v for v in live if v.dtype in FLOATS and (v.shape is None or len(v.shape) > 1))


def in_bodies(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """The nodes in branches and loops, with the node of the graph that each is in."""
    held: dict[ir.Node, ir.Node] = {}
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                held |= dict.fromkeys(ir.traversal.RecursiveGraphIterator(attribute.as_graph()), node)
    return held


def places_of(graph: ir.Graph) -> dict[ir.Node, Where]:
    """The modules of every node; none where no node has a name that tells them."""
    numbers = _CallNumbers(graph)
    named = {node: where for node in graph if (where := _by_name(node, numbers)) is not None}
    if not named:
        return {}
    above, below = _nearest(graph, named)
    places: dict[ir.Node, Where] = {}
    for node in graph:  # a node's predecessors come before it
        places[node] = named.get(node) or _by_neighbours(node, above[node], below[node], places)
    return places


def modules_in(places: Mapping[ir.Node, Where]) -> list[str]:
    """The names of all modules that nodes are surely in."""
    return sorted({module for where in places.values() for module in where.sure})


class _CallNumbers:
    """How an exporter that names nodes by path numbers the calls of a module: the second call of norm is norm_1."""

    def __init__(self, graph: ir.Graph) -> None:
        self.in_metadata = any("@" in node.metadata_props.get(SCOPES, "") for node in graph)
        paths = {
            str(node.name).strip("/").rpartition("/")[0].replace("/", ".") for node in graph if _is_path(node.name)
        }
        self.paths = {path[:end] for path in paths for end in _ends(path)}
        self.owners = {name[:end] for name in graph.initializers for end in _ends(name)}

    def split(self, module: str) -> tuple[str, int]:
        """The module of a path and the number of its call."""
        match = re.fullmatch(r"(.+)_([1-9]\d*)", module)
        if match is None or match[1] not in self.paths or module in self.owners:
            return module, 0
        return match[1], int(match[2])


def _ends(name: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\.", name)] + [len(name)]


def _is_path(name: str | None) -> bool:
    return bool(name) and str(name).startswith("/") and "usion" not in str(name)


def _by_name(node: ir.Node, numbers: _CallNumbers) -> Where | None:
    """The modules that a node's metadata or name tells, if it does what a module's code says and nothing else."""
    role = role_of(node)
    if role is not None and role.part != "norm":
        return None
    written = None if role is not None else node.metadata_props.get(SCOPES)
    if written is not None and not node.domain:
        pairs = [name.partition("@") for name in ast.literal_eval(written)[:-1] if name]  # the last is the operation
        calls = {name: int(number or 0) for name, _, number in pairs} if numbers.in_metadata else {}
        return Where(tuple(name for name, _, _ in pairs), calls=calls, named=True) if pairs else None
    name = role.node if role is not None else node.name
    if not _is_path(name) or (node.domain and role is None and not _names_itself(node)):
        return None
    if role is not None and not role.names_itself:
        return None
    parts = str(name).strip("/").split("/")[:-1]
    if not parts:
        return Where((), named=True)  # the model itself is in no module
    module, call = numbers.split(".".join(parts))
    around = [".".join(parts[: i + 1]) for i in range(len(parts) - 1)]
    return Where((*around, module), calls={module: call}, named=True)


def _names_itself(node: ir.Node) -> bool:
    """Whether the last part of a node's path is what the node does, so that an exporter gave it this name."""
    operation = re.split(r"[_\d]", str(node.name).rpartition("/")[2])[0]
    return bool(operation) and node.op_type.startswith(operation)


def owner(value: ir.Value | None) -> str | None:
    """The module that a parameter belongs to, by its name."""
    if value is None or not value.name or value.producer() is not None or re.search("/|::", value.name):
        return None  # an optimiser makes constants of computed values, and equal ones become one
    module = value.name.rpartition(".")[0]
    return module or None


def chain(module: str) -> Scopes:
    """A module and all that may be around it."""
    return tuple(module[:end] for end in _ends(module))


def _common(one: Scopes, other: Scopes) -> Scopes:
    return tuple(a for a, b in zip(one, other, strict=False) if a == b)


def _longest(chains: Iterable[Scopes]) -> Scopes:
    return max(chains, key=len, default=())


def _nearest(graph: ir.Graph, named: Mapping[ir.Node, Where]) -> tuple[_Chains, _Chains]:
    """The modules of the nearest nodes with names, of those before each node and of those behind it."""
    moving, held = activations(graph), in_bodies(graph)
    before: _Chains = {}
    behind: _Chains = {}
    for node in graph:
        near = [value.producer() for value in node.inputs if value in moving]
        before[node] = _reached(near, before, named)
    for node in reversed(graph):
        near = [held.get(use.node, use.node) for value in node.outputs if value in moving for use in value.uses()]
        behind[node] = _reached(near, behind, named)
    return before, behind


def _reached(near: Iterable[ir.Node | None], nearest: _Chains, named: Mapping[ir.Node, Where]) -> set[Scopes]:
    found: set[Scopes] = set()
    for node in near:
        if node is not None:
            found |= {named[node].sure} if node in named else nearest.get(node, set())
    return found


def _by_neighbours(node: ir.Node, above: set[Scopes], below: set[Scopes], places: Mapping[ir.Node, Where]) -> Where:
    """What is sure and what is possible of a node without a name."""
    role: Role | None = role_of(node)
    owners = {name for value in node.inputs if (name := owner(value)) is not None}
    if role is not None and role.part == "bias" and role.names_itself:
        return Where(_sure_of(node.inputs[0], places))  # where the sum is
    single = node.op_type in _NORMS or (role is not None and role.part == "bias")
    if single and owners:
        shared = chain(next(iter(owners)))
        for name in owners:
            shared = _common(shared, chain(name))
        return Where(shared)
    if node.op_type in _NORMS and (fused := re.fullmatch(r"/(.+)/\w+/\w*LayerNormFusion/", str(node.name))):
        *around, norm = chain(fused[1].replace("/", "."))  # of the last of its parts; another may be beside it
        return Where(tuple(around), frozenset({norm}))
    sure = _longest(_common(one, other) for one in above for other in below)
    maybe = {name for scopes in (*above, *below) for name in scopes}
    maybe |= {name for module in owners for name in chain(module)}
    if role is not None and role.part == "sum":
        operands = [_sure_of(value, places) for value in node.inputs]
        # If the sum were not in a module that gives both operands, this module would give two values.
        sure = _longest([sure, _common(*operands)])
        norms = [held for use in node.outputs[0].uses() if (held := _norm_chain(use.node, role))]
        sure = _longest([sure, *(_common(one, held) for held in norms for one in operands)])
        maybe = set() if role.names_itself else maybe - {str(role.bias_owner)}
    return Where(sure, frozenset(maybe))


def _sure_of(value: ir.Value | None, places: Mapping[ir.Node, Where]) -> Scopes:
    producer = None if value is None else value.producer()
    return places[producer].sure if producer is not None and producer in places else ()


def _norm_chain(node: ir.Node, role: Role) -> Scopes | None:
    other = role_of(node)
    if other is None or other.of != role.of or other.part != "norm":
        return None
    if role.names_itself:
        parts = role.node.strip("/").split("/")[:-1]
        return tuple(".".join(parts[: i + 1]) for i in range(len(parts)))
    module = owner(node.inputs[1])
    return None if module is None else chain(module)


def named_module(modules: Sequence[str], name: str) -> str:
    """The one module of this name; a wrapper may add to the front of the name, or the first part may be missing.

    >>> named_module(["model.encoder.layer.0", "model.encoder.layer.1"], "encoder.layer.1")
    'model.encoder.layer.1'

    Raises:
        ValueError: no module has the name, or several modules have it.
    """
    base = name.partition(".")[2]  # a model with a head names its modules from the head
    for wanted in (name, base) if "." in base else (name,):
        matching = [module for module in modules if module == wanted] or [
            module for module in modules if module.endswith(f".{wanted}")
        ]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ValueError(f"{name} is the name of several modules, {listed(matching)}; give more of it")
    close = difflib.get_close_matches(name, modules, n=5, cutoff=0)
    raise ValueError(f"the graph has no module {name!r}; close names are {listed(close)}")
