"""encode_joint.onnx: the exact rule over a whole batch, for mutual choice (BatchTopK) and feature choice.

Feature choice is BatchTopK with a limit on each feature's matches. `joint_in_numpy` is the same with the same names.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.folder import DERIVED, Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.encode import pre_activations
from sae_runtime.exports.graphs.graph import Graph, external
from sae_runtime.exports.graphs.select import IndicesAndValues

# Features are saved by falling limit. A TopK for each group of like limits costs far less than one for all features,
# which is as deep as the largest limit.
_GROUP_EDGES = (0, 64, 1024)


def joint_in_numpy(z: NDArray[np.floating], total: int, limit: NDArray[np.int64] | None = None) -> IndicesAndValues:
    """What `joint_graph` computes of the pre-activations z [n, d_sae] of valid rows, for `total` matches.

    `limit` [d_sae] bounds the matches of each feature.
    """
    n, d_sae = z.shape
    if limit is not None:
        slot = np.argsort(np.argsort(-z, axis=0, kind="stable"), axis=0, kind="stable")
        z = np.where(slot < limit, z, 0)
    position = np.argsort(-z, axis=None, kind="stable")[:total]
    position = position[z.ravel()[position] > 0]
    token, feature = np.divmod(position, d_sae)
    order = np.argsort(token, kind="stable")  # each row stays sorted by falling value
    token, feature = token[order], feature[order]
    count = np.bincount(token, minlength=n)
    begin = np.cumsum(count) - count
    slot = np.arange(len(token)) - begin[token]
    shape = (n, max(count.max(initial=0), 1))
    indices, values = np.zeros(shape, np.int64), np.zeros(shape, z.dtype)
    indices[token, slot], values[token, slot] = feature, z[token, feature]
    return indices, values


def joint_graph(bundle: Bundle, max_density: TensorSpec | None) -> ir.Model:
    """The batch rule: x f32 [n, d_in] -> indices i64, values f32 [n, w]; w is what the fullest row needs.

    Optional inputs: valid bool [n] or [1] (other rows match nothing and add nothing to the total), k f64 [], and for
    feature choice max_density f64 [d_sae], the largest density of each feature. A valid row that holds NaN or Inf, or
    is so large that its pre-activations do, matches nothing and gets NaN values.

    Args:
        bundle: a mutual or feature choice bundle.
        max_density: where `max_density` lies in derived.safetensors, for feature choice.
    """
    graph = Graph("encode_joint")
    architecture, allocation = bundle.manifest.architecture, bundle.manifest.allocation
    assert allocation is not None
    one = graph.constant([1], np.int64)
    x = graph.input("x", np.float32, ["n", architecture.d_in])
    valid = graph.input("valid", np.bool_, ["valid"], default=[True])
    k = graph.input("k", np.float64, [], default=allocation.k)

    n = graph.op("Shape", x, start=0, end=1)
    valid = graph.op("Expand", valid, n)
    tokens = graph.op("ReduceSum", graph.cast(valid, np.float64), keepdims=0)
    z, zero = pre_activations(graph, bundle, x), graph.constant(0, np.float32)
    # trace is 0 for a finite row and NaN for another, since 0 times Inf is NaN. z can overflow where x does not.
    trace = graph.op(
        "Add",
        graph.op("ReduceSum", graph.op("Mul", x, zero), one, keepdims=0),
        graph.op("Mul", graph.op("ReduceSum", z, one, keepdims=0), zero),
    )
    trace = graph.op("Where", valid, trace, zero)
    usable = graph.op("And", valid, graph.op("Not", graph.op("IsNaN", trace)))
    z = graph.op("Where", graph.op("Unsqueeze", usable, one), z, zero)

    total = graph.cast(graph.op("Round", graph.op("Mul", k, tokens)), np.int64)
    if max_density is None:
        token, feature, value = _mutual(graph, z, total, architecture.d_sae)
    else:
        density = graph.input(
            "max_density", np.float64, [architecture.d_sae], default=external("max_density", DERIVED, max_density)
        )
        limit = graph.cast(graph.op("Round", graph.op("Mul", density, tokens)), np.int64)
        token, feature, value = _feature(graph, z, total, graph.op("Min", limit, n), architecture.d_sae)
    indices, values = _rows(graph, token, feature, value, n)
    values = graph.op("Add", values, graph.op("Unsqueeze", trace, one))
    graph.output(indices, "indices", np.int64, ["n", "w"])
    graph.output(values, "values", np.float32, ["n", "w"])
    return graph.model()


def _mutual(graph: Graph, z: ir.Value, total: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Token, feature and value of the `total` largest z, by falling value."""
    flat = graph.op("Reshape", z, graph.constant([-1], np.int64), allowzero=1)
    value, position = _largest(graph, flat, total)
    columns = graph.constant(d_sae, np.int64)
    token = graph.op("Div", position, columns)
    return token, graph.op("Sub", position, graph.op("Mul", token, columns)), value


def _feature(
    graph: Graph, z: ir.Value, total: ir.Value, limit: ir.Value, d_sae: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Token, feature and value of the `total` largest z among the limit[i] largest of every column i."""
    columns = graph.op("Transpose", z, perm=[1, 0])
    flat, last = graph.constant([-1], np.int64), graph.constant([1], np.int64)
    parts: list[tuple[ir.Value, ir.Value, ir.Value]] = []
    edges = [edge for edge in _GROUP_EDGES if edge < d_sae] + [d_sae]
    for begin, end in zip(edges, edges[1:], strict=False):
        bounds = graph.constant([begin], np.int64), graph.constant([end], np.int64)
        group = graph.op("Slice", columns, *bounds, graph.constant([0], np.int64))
        depths = graph.op("Unsqueeze", graph.op("Slice", limit, *bounds), last)
        depth = graph.op("ReduceMax", depths)
        value, token = graph.ops("TopK", 2, group, graph.op("Reshape", depth, last))
        slot = graph.range(depth)
        value = graph.op("Where", graph.op("Less", slot, depths), value, graph.constant(0, np.float32))
        ids = _ids(graph, begin, end)
        feature = graph.op("Expand", ids, graph.op("Shape", value))
        parts.append((token, feature, value))
    token, feature, value = (
        graph.op("Concat", *[graph.op("Reshape", part[i], flat, allowzero=1) for part in parts], axis=0)
        for i in range(3)
    )
    value, position = _largest(graph, value, total)
    return graph.op("Gather", token, position), graph.op("Gather", feature, position), value


def _largest(graph: Graph, flat: ir.Value, total: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The `total` largest positive numbers of a vector by falling value, and their positions."""
    one, zero = graph.constant([1], np.int64), graph.constant([0], np.int64)
    limit = graph.op("Min", graph.op("Reshape", total, one), graph.op("Shape", flat))
    values, position = graph.ops("TopK", 2, flat, graph.op("Max", limit, zero))
    positive = graph.op("Greater", values, graph.constant(0, np.float32))
    count = graph.op("Reshape", graph.op("ReduceSum", graph.cast(positive, np.int64)), one)
    return graph.op("Slice", values, zero, count), graph.op("Slice", position, zero, count)


def _rows(graph: Graph, token: ir.Value, feature: ir.Value, value: ir.Value, n: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Matches by falling value, regrouped by token: indices i64 and values f32 [n, w], w >= 1."""
    one, zero = graph.constant([1], np.int64), graph.constant(0, np.int64)
    matches = graph.op("Shape", value)
    rank = graph.range(matches)
    key = graph.op("Add", graph.op("Mul", token, matches), rank)
    order = graph.ops("TopK", 2, key, matches, largest=0)[1]  # by token, then by rank: each row stays sorted
    token, feature, value = (graph.op("Gather", part, order) for part in (token, feature, value))
    none = graph.op("Expand", zero, n)
    ones = graph.op("Expand", one, matches)
    count = graph.op("ScatterElements", none, token, ones, axis=0, reduction="add")
    begin = graph.op("CumSum", count, zero, exclusive=1)
    slot = graph.op("Sub", rank, graph.op("Gather", begin, token))
    # The one makes at least one slot, and keeps ReduceMax away from an empty vector.
    slots = graph.op("ReduceMax", graph.op("Concat", count, one, axis=0), keepdims=1)
    where = graph.op("Concat", graph.op("Unsqueeze", token, one), graph.op("Unsqueeze", slot, one), axis=1)
    shape = graph.op("Concat", n, slots, axis=0)
    indices = graph.op("ScatterND", graph.op("Expand", zero, shape), where, feature)
    values = graph.op("ScatterND", graph.op("Expand", graph.constant(0, np.float32), shape), where, value)
    return indices, values


def _ids(graph: Graph, begin: int, end: int) -> ir.Value:
    """The numbers begin, ... end - 1 as a column."""
    ids = graph.op("Range", graph.constant(begin, np.int64), graph.constant(end, np.int64), graph.constant(1, np.int64))
    return graph.op("Unsqueeze", ids, graph.constant([1], np.int64))
