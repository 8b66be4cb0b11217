"""Which nodes of a module belong to which of its calls, where a forward pass calls it several times.

The graphs of `export_model` have the number of the call in the names of modules, and graphs with paths have it for the
innermost module of a node. Otherwise the nodes tell it: each call adds the same nodes and reads each parameter once,
and the nodes of a call stand together, in the order of the calls.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from sae_runtime.bundle.hooks import Hook
from sae_runtime.exports.splice.modules import Where, activations


def nodes_of_call(graph: ir.Graph, places: Mapping[ir.Node, Where], module: str, hook: Hook) -> list[ir.Node]:
    """The nodes of the one call of a module that a hook means.

    Raises:
        ValueError: the module is called several times and the hook does not say which call is meant, there is no such
            call, or the graph does not tell the calls apart.
    """
    inside = [node for node in graph if module in places[node].sure]
    calls = _Calls(graph, places, module, inside)
    count = calls.count(hook)
    # The sentences are those of `HookPoint.check_calls`, for a torch model.
    text = str(hook).rpartition("@")[0] or str(hook)
    if hook.call is None and count > 1:
        raise ValueError(
            f"a forward pass calls {text} {count} times; name one of its calls, {text}@0 to {text}@{count - 1}"
        )
    if hook.call is not None and hook.call >= count:
        raise ValueError(
            f"there is no {hook}, for a forward pass calls the module {count} times; write {text}@{count - 1}"
        )
    return inside if count == 1 else calls.apart(count)[hook.call or 0]


class _Calls:
    """The calls of a module, as its nodes show them."""

    def __init__(self, graph: ir.Graph, places: Mapping[ir.Node, Where], module: str, inside: list[ir.Node]) -> None:
        self.places, self.module, self.inside = places, module, inside
        self.index = {node: i for i, node in enumerate(graph)}
        moving = activations(graph)
        self.working = [node for node in graph if any(value in moving for value in node.outputs)]
        alike: dict[tuple[str, str], list[ir.Node]] = defaultdict(list)  # by innermost module and operation
        for node in (node for node in self.working if module in places[node].sure):
            alike[places[node].sure[-1], node.op_type].append(node)
        for nodes in alike.values():
            nodes.sort(key=lambda node: (self._number_inside(node), self.index[node]))
        self.alike = list(alike.values())

    def _number_inside(self, node: ir.Node) -> int:
        """The number of the call of the innermost module of a node, where its name tells it."""
        where = self.places[node]
        return where.calls.get(where.sure[-1], 0)

    def count(self, hook: Hook) -> int:
        """How often a forward pass calls the module."""
        told = {where.calls[self.module] for node in self.inside if self.module in (where := self.places[node]).calls}
        if told:
            return max(told) + 1
        reads = self._reads()
        repeated = math.gcd(*map(len, self.alike), *reads)
        if repeated <= 1:
            return 1
        runs = [inside for inside, _ in itertools.groupby(self.working, lambda n: self.module in self.places[n].sure)]
        if sum(runs) == repeated:
            return repeated
        if sum(runs) == 1 and not reads:
            return 1
        # Its nodes repeat without another node between: either it is called so often, or it repeats its parts itself.
        if sum(runs) == 1 and hook.call:
            return repeated
        raise ValueError(
            f"the graph does not tell whether a forward pass calls {self.module} once or {repeated} times; export the "
            "model with sae-runtime export-model, or hook a module inside it or tensor:NAME"
        )

    def _reads(self) -> list[int]:
        """How often each parameter is read in the module."""
        reads: dict[ir.Value, int] = defaultdict(int)
        for value in (value for node in itertools.chain(*self.alike) for value in node.inputs):
            parameter = _parameter(value)
            if parameter is not None and parameter.shape is not None and len(parameter.shape) > 0:
                reads[parameter] += 1
        return list(reads.values())

    def apart(self, count: int) -> list[list[ir.Node]]:
        """The nodes of each call, where the module is called `count` times."""
        if all(self.module in self.places[node].calls for node in self.inside):
            return [[n for n in self.inside if self.places[n].calls[self.module] == i] for i in range(count)]
        if any(len(nodes) % count for nodes in self.alike) or not all(self.places[node].named for node in self.inside):
            raise self._mixed(count)
        parts = [[node for nodes in self.alike for node in _part(nodes, i, count)] for i in range(count)]
        ends = [(min(map(self.index.__getitem__, part)), max(map(self.index.__getitem__, part))) for part in parts]
        if any(end >= start for (_, end), (start, _) in itertools.pairwise(ends)):
            raise self._mixed(count)
        # A node that makes shapes or numbers alone is a part of the call that is under way.
        working = set(itertools.chain(*parts))
        for node in self.inside:
            if node not in working:
                under_way = next((i for i, (_, end) in enumerate(ends) if self.index[node] <= end), count - 1)
                parts[under_way].append(node)
        return parts

    def _mixed(self, count: int) -> ValueError:
        return ValueError(
            f"a forward pass calls {self.module} {count} times, and the graph does not tell the calls apart, since its "
            "nodes were reordered or replaced; splice before optimising, or hook tensor:NAME"
        )


def _parameter(value: ir.Value | None) -> ir.Value | None:
    """The parameter that a value is; an exporter may give it a second name by Identity."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    return value if value is not None and value.is_initializer() else None


def _part(nodes: Sequence[ir.Node], number: int, count: int) -> Sequence[ir.Node]:
    size = len(nodes) // count
    return nodes[number * size : (number + 1) * size]
