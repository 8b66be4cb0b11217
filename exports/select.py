"""Selecting the largest latents of every token."""

import numpy as np
import onnx_ir as ir

from sae_runtime.exports.graph import Graph
from sae_runtime.manifest import Encoder

GROUP = 16  # neighbouring features that are looked at together


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
    """The first n rows: what a graph gives, who made one more."""
    first = graph.constant([0], np.int64)
    return graph.op("Slice", value, first, n, first)


def group_maxima(graph: Graph, z: ir.Value, d_sae: int) -> ir.Value:
    """The largest of every 16 neighbours: z [n, d_sae] -> [n, d_sae / 16]."""
    shape = graph.constant([0, d_sae // GROUP, GROUP], np.int64)
    return graph.op("ReduceMax", graph.op("Reshape", z, shape), graph.constant([2], np.int64), keepdims=0)


def groups_of(graph: Graph, each: ir.Value) -> ir.Value:
    """All groups, of all tokens: [n, d_sae] -> [n * d_sae / 16, 16], [d_sae] -> [d_sae / 16, 16]."""
    return graph.op("Reshape", each, graph.constant([-1, GROUP], np.int64), allowzero=1)


def taken(graph: Graph, each: ir.Value, at: ir.Value) -> ir.Value:
    """Numbers of each, a vector or what is flattened to one, at places of any shape.

    By GatherElements, which takes onnxruntime a nanosecond a number; a Gather of single numbers takes it twenty.
    """
    flat = graph.constant([-1], np.int64)
    each, places = (graph.op("Reshape", part, flat, allowzero=1) for part in (each, at))
    return graph.op("Reshape", graph.op("GatherElements", each, places), graph.op("Shape", at), allowzero=1)


def selected_slots(graph: Graph, encoder: Encoder, z: ir.Value, width: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, at most width] of what is kept of z [n, d_sae], by falling value.

    Where a threshold selects, z holds 0 for all that lies below it.
    """
    if encoder.selection == "groupmax":
        return _winners(graph, encoder, z, width)
    return largest(graph, z, width, encoder.d_sae)


def _winners(graph: Graph, encoder: Encoder, z: ir.Value, width: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values of the largest of each of k runs of neighbours."""
    assert encoder.k is not None
    size, two = encoder.d_sae // encoder.k, graph.constant([2], np.int64)
    runs = graph.op("Reshape", z, graph.constant([0, encoder.k, size], np.int64))
    first = graph.constant(np.arange(encoder.k) * size, np.int64)
    features = graph.op("Add", graph.op("ArgMax", runs, axis=2, keepdims=0), first)
    slots = graph.op("Min", width, graph.constant([encoder.k], np.int64))
    values, at = graph.ops("TopK", 2, graph.op("ReduceMax", runs, two, keepdims=0), slots)
    return graph.op("GatherElements", features, at, axis=1), values


def largest(graph: Graph, z: ir.Value, width: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(width, d_sae)] of every row's largest z, by falling value, equals by feature.

    The k largest lie in the k groups with the largest maxima, so that TopK need not look at the others (exact; also
    where values are equal, since groups are runs of neighbours and the first of equal groups are taken).
    """
    slots = graph.op("Min", width, graph.constant([d_sae], np.int64))
    if d_sae % GROUP:
        values, indices = graph.ops("TopK", 2, z, slots)
        return indices, values
    one, size = graph.constant([1], np.int64), graph.constant(GROUP, np.int64)
    n = graph.op("Shape", z, start=0, end=1)
    count = graph.constant([d_sae // GROUP], np.int64)
    few = graph.op("Min", width, count)
    chosen = graph.ops("TopK", 2, group_maxima(graph, z, d_sae), few, sorted=0)[1]
    chosen = graph.ops("TopK", 2, chosen, few, largest=0)[0]
    first = graph.op("Unsqueeze", graph.op("Mul", graph.range(n), count), one)
    members = graph.op("Gather", groups_of(graph, z), graph.op("Add", chosen, first))
    members = graph.op("Reshape", members, graph.op("Concat", n, graph.op("Mul", few, size), axis=0), allowzero=1)
    values, at = graph.ops("TopK", 2, members, slots)
    group = graph.op("Div", at, size)
    inside = graph.op("Sub", at, graph.op("Mul", group, size))
    indices = graph.op("Add", graph.op("Mul", graph.op("GatherElements", chosen, group, axis=1), size), inside)
    return indices, values
