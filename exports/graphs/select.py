"""Select the largest pre-activations of every token."""

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.graphs import GROUP
from sae_runtime.bundle.manifest import Architecture
from sae_runtime.exports.graphs.graph import Graph


def tokens(graph: Graph, d_in: int) -> tuple[ir.Value, ir.Value]:
    """The input x f32 [n, d_in] as `not_empty` gives it."""
    return not_empty(graph, graph.input("x", np.float32, ["n", d_in]), d_in)


def not_empty(graph: Graph, x: ir.Value, columns: int) -> tuple[ir.Value, ir.Value]:
    """x f32 [n, columns], with a row of zeros where n is 0, and n i64 [1].

    TopK of no rows ends the process in onnxruntime 1.30 and before.
    """
    n = graph.op("Shape", x, start=0, end=1)
    missing = graph.op("Sub", [1], graph.op("Min", n, [1]))
    rows = graph.op("ConstantOfShape", graph.op("Concat", missing, [columns], axis=0))
    return graph.op("Concat", x, rows, axis=0), n


def first_rows(graph: Graph, value: ir.Value, n: ir.Value) -> ir.Value:
    """The first n rows, without the row that `not_empty` may have added."""
    return graph.op("Slice", value, [0], n, [0])


def group_maxima(graph: Graph, z: ir.Value, d_sae: int) -> ir.Value:
    """The largest of every 16 neighbours: z [n, d_sae] -> [n, d_sae / 16]."""
    return graph.op("ReduceMax", graph.op("Reshape", z, [0, d_sae // GROUP, GROUP]), [2], keepdims=0)


def by_group(graph: Graph, numbers: ir.Value) -> ir.Value:
    """The groups of all tokens: [n, d_sae] -> [n * d_sae / 16, 16], [d_sae] -> [d_sae / 16, 16]."""
    return graph.flat(numbers, GROUP)


def pick(graph: Graph, numbers: ir.Value, positions: ir.Value) -> ir.Value:
    """numbers.ravel()[positions], for positions of any shape.

    onnxruntime's GatherElements needs a nanosecond a number; its Gather of single numbers needs twenty.
    """
    picked = graph.op("GatherElements", graph.flat(numbers), graph.flat(positions))
    return graph.op("Reshape", picked, graph.op("Shape", positions), allowzero=1)


def selected_slots(graph: Graph, architecture: Architecture, z: ir.Value, slots: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, at most slots] of the features that the SAE keeps of z [n, d_sae], by falling value.

    Where a threshold selects, z holds 0 for every feature that does not exceed it.
    """
    if architecture.selection == "groupmax":
        return winners(graph, z, architecture.k or 1, slots, architecture.d_sae)
    return largest(graph, z, slots, architecture.d_sae)


def selected_in_batch(
    graph: Graph, architecture: Architecture, z: ir.Value, slots: ir.Value, batch: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """As `selected_slots` for z [b, t, d_sae], with results [*batch, slots]; the SAE has this many slots at least.

    `batch` is [b, t], or more tokens where slots is 0 and z was not computed for all of them.
    """
    flat, n = not_empty(graph, graph.flat(z, architecture.d_sae), architecture.d_sae)
    shape = graph.op("Concat", batch, slots, axis=0)
    indices, values = (
        graph.op("Reshape", first_rows(graph, part, n), shape, allowzero=1)
        for part in selected_slots(graph, architecture, flat, slots)
    )
    return indices, values


def winners(graph: Graph, z: ir.Value, k: int, slots: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(slots, k)] of the largest z of each of k runs of neighbours, by falling value.

    In numpy, with the maxima and their features before they are sorted:

        runs = z.reshape(len(z), k, d_sae // k)
        features = runs.argmax(axis=2) + np.arange(k) * (d_sae // k)
        position = np.argsort(-runs.max(axis=2), axis=1, kind="stable")[:, :slots]
        indices = np.take_along_axis(features, position, axis=1)
        values = np.take_along_axis(runs.max(axis=2), position, axis=1)
    """
    size = d_sae // k
    runs = graph.op("Reshape", z, [0, k, size])
    features = graph.op("Add", graph.op("ArgMax", runs, axis=2, keepdims=0), np.arange(k) * size)
    count = graph.op("Min", slots, [k])
    values, position = graph.ops("TopK", 2, graph.op("ReduceMax", runs, [2], keepdims=0), count)
    return graph.op("GatherElements", features, position, axis=1), values


def largest(graph: Graph, z: ir.Value, slots: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(slots, d_sae)] of the largest z of every row, by falling value, equals by feature.

    The k largest are in the k groups with the largest maxima, so TopK looks at these groups only. Equal values come
    out right too, since groups are runs of neighbours and TopK takes the first of equal groups. A d_sae that is no
    multiple of 16 takes one TopK of whole rows.

    In numpy:

        groups = z.reshape(len(z), d_sae // 16, 16)
        chosen = np.argsort(-groups.max(axis=2), axis=1, kind="stable")[:, :slots]
        chosen = np.sort(chosen, axis=1)
        members = np.take_along_axis(groups, chosen[:, :, None], axis=1)
        members = members.reshape(len(z), chosen.shape[1] * 16)
        position = np.argsort(-members, axis=1, kind="stable")[:, :slots]
        values = np.take_along_axis(members, position, axis=1)
        group, inside = np.divmod(position, 16)
        indices = np.take_along_axis(chosen, group, axis=1) * 16 + inside
    """
    slots = graph.op("Min", slots, [d_sae])
    if d_sae % GROUP:
        values, indices = graph.ops("TopK", 2, z, slots)
        return indices, values
    n = graph.op("Shape", z, start=0, end=1)
    count = graph.op("Min", slots, [d_sae // GROUP])
    chosen = graph.ops("TopK", 2, group_maxima(graph, z, d_sae), count, sorted=0)[1]
    chosen = graph.ops("TopK", 2, chosen, count, largest=0)[0]
    first = graph.op("Unsqueeze", graph.op("Mul", graph.range(n), [d_sae // GROUP]), [1])
    members = graph.op("Gather", by_group(graph, z), graph.op("Add", chosen, first))
    shape = graph.op("Concat", n, graph.op("Mul", count, GROUP), axis=0)
    members = graph.op("Reshape", members, shape, allowzero=1)
    values, position = graph.ops("TopK", 2, members, slots)
    group = graph.op("Div", position, GROUP)
    inside = graph.op("Sub", position, graph.op("Mul", group, GROUP))
    indices = graph.op("Add", graph.op("Mul", graph.op("GatherElements", chosen, group, axis=1), GROUP), inside)
    return indices, values
