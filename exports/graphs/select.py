"""Select the largest pre-activations of every token.

Each selection stands under a numpy version of itself with the same names.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.graphs import GROUP
from sae_runtime.bundle.manifest import Architecture
from sae_runtime.exports.graphs.graph import Graph

IndicesAndValues = tuple[NDArray[np.int64], NDArray[np.floating]]


def tokens(graph: Graph, d_in: int) -> tuple[ir.Value, ir.Value]:
    """The input x f32 [n, d_in] as `not_empty` gives it."""
    return not_empty(graph, graph.input("x", np.float32, ["n", d_in]), d_in)


def not_empty(graph: Graph, x: ir.Value, columns: int) -> tuple[ir.Value, ir.Value]:
    """x f32 [n, columns] with a row of zeros where it has none, and n i64 [1].

    TopK of no rows ends the process in onnxruntime 1.30 and before.
    """
    one, n = graph.constant([1], np.int64), graph.op("Shape", x, start=0, end=1)
    missing = graph.op("Sub", one, graph.op("Min", n, one))
    rows = graph.op("ConstantOfShape", graph.op("Concat", missing, graph.constant([columns], np.int64), axis=0))
    return graph.op("Concat", x, rows, axis=0), n


def first_rows(graph: Graph, value: ir.Value, n: ir.Value) -> ir.Value:
    """The first n rows, without the row that `not_empty` may have added."""
    first = graph.constant([0], np.int64)
    return graph.op("Slice", value, first, n, first)


def group_maxima(graph: Graph, z: ir.Value, d_sae: int) -> ir.Value:
    """The largest of every 16 neighbours: z [n, d_sae] -> [n, d_sae / 16]."""
    shape = graph.constant([0, d_sae // GROUP, GROUP], np.int64)
    return graph.op("ReduceMax", graph.op("Reshape", z, shape), graph.constant([2], np.int64), keepdims=0)


def by_group(graph: Graph, numbers: ir.Value) -> ir.Value:
    """The groups of all tokens: [n, d_sae] -> [n * d_sae / 16, 16], [d_sae] -> [d_sae / 16, 16]."""
    return graph.op("Reshape", numbers, graph.constant([-1, GROUP], np.int64), allowzero=1)


def pick(graph: Graph, numbers: ir.Value, positions: ir.Value) -> ir.Value:
    """numbers.ravel()[positions], for positions of any shape.

    It is a GatherElements, for which onnxruntime needs a nanosecond a number; a Gather of single numbers needs twenty.
    """
    flat = graph.constant([-1], np.int64)
    vector, wanted = (graph.op("Reshape", part, flat, allowzero=1) for part in (numbers, positions))
    return graph.op("Reshape", graph.op("GatherElements", vector, wanted), graph.op("Shape", positions), allowzero=1)


def selected_slots(graph: Graph, architecture: Architecture, z: ir.Value, slots: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, at most slots] of what the SAE keeps of z [n, d_sae], by falling value.

    Where a threshold selects, z holds 0 for every feature that does not pass it.
    """
    if architecture.selection == "groupmax":
        return winners(graph, z, architecture.k or 1, slots, architecture.d_sae)
    return largest(graph, z, slots, architecture.d_sae)


def winners_in_numpy(z: NDArray[np.floating], k: int, slots: int) -> IndicesAndValues:
    """What `winners` computes."""
    runs = z.reshape(len(z), k, -1)
    features = runs.argmax(axis=2) + np.arange(k) * runs.shape[2]
    values = runs.max(axis=2)
    position = np.argsort(-values, axis=1, kind="stable")[:, : min(slots, k)]
    return np.take_along_axis(features, position, axis=1), np.take_along_axis(values, position, axis=1)


def winners(graph: Graph, z: ir.Value, k: int, slots: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(slots, k)] of the largest z of each of k runs of neighbours, by falling value."""
    size, two = d_sae // k, graph.constant([2], np.int64)
    runs = graph.op("Reshape", z, graph.constant([0, k, size], np.int64))
    first = graph.constant(np.arange(k) * size, np.int64)
    features = graph.op("Add", graph.op("ArgMax", runs, axis=2, keepdims=0), first)
    count = graph.op("Min", slots, graph.constant([k], np.int64))
    values, position = graph.ops("TopK", 2, graph.op("ReduceMax", runs, two, keepdims=0), count)
    return graph.op("GatherElements", features, position, axis=1), values


def largest_in_numpy(z: NDArray[np.floating], slots: int) -> IndicesAndValues:
    """What `largest` computes, for d_sae a multiple of 16."""
    n, d_sae = z.shape
    groups = z.reshape(n, d_sae // GROUP, GROUP)
    count = min(slots, d_sae // GROUP)
    chosen = np.sort(np.argsort(-groups.max(axis=2), axis=1, kind="stable")[:, :count], axis=1)
    members = np.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(n, count * GROUP)
    position = np.argsort(-members, axis=1, kind="stable")[:, : min(slots, d_sae)]
    group, inside = np.divmod(position, GROUP)
    indices = np.take_along_axis(chosen, group, axis=1) * GROUP + inside
    return indices, np.take_along_axis(members, position, axis=1)


def largest(graph: Graph, z: ir.Value, slots: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(slots, d_sae)] of the largest z of every row, by falling value, equals by feature.

    The k largest lie in the k groups with the largest maxima, so TopK looks at these groups alone. This is exact where
    values are equal too: groups are runs of neighbours, and TopK takes the first of equal groups.
    """
    slots = graph.op("Min", slots, graph.constant([d_sae], np.int64))
    if d_sae % GROUP:
        values, indices = graph.ops("TopK", 2, z, slots)
        return indices, values
    one, size = graph.constant([1], np.int64), graph.constant(GROUP, np.int64)
    n = graph.op("Shape", z, start=0, end=1)
    groups = graph.constant([d_sae // GROUP], np.int64)
    count = graph.op("Min", slots, groups)
    chosen = graph.ops("TopK", 2, group_maxima(graph, z, d_sae), count, sorted=0)[1]
    chosen = graph.ops("TopK", 2, chosen, count, largest=0)[0]
    first = graph.op("Unsqueeze", graph.op("Mul", graph.range(n), groups), one)
    members = graph.op("Gather", by_group(graph, z), graph.op("Add", chosen, first))
    members = graph.op("Reshape", members, graph.op("Concat", n, graph.op("Mul", count, size), axis=0), allowzero=1)
    values, position = graph.ops("TopK", 2, members, slots)
    group = graph.op("Div", position, size)
    inside = graph.op("Sub", position, graph.op("Mul", group, size))
    indices = graph.op("Add", graph.op("Mul", graph.op("GatherElements", chosen, group, axis=1), size), inside)
    return indices, values
