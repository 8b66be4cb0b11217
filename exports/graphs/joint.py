"""encode_joint.onnx: the exact rule over a whole batch, for mutual choice (BatchTopK) and feature choice.

Feature choice is BatchTopK with a limit on each feature's matches (arXiv:2411.02124). In numpy, with the
pre-activations z [n, d_sae] of valid rows, the total matches, and a limit [d_sae] for feature choice, else None:

    if limit is not None:
        rank = np.argsort(np.argsort(-z, axis=0, kind="stable"), axis=0)  # within its column
        z = np.where(rank < limit, z, 0)
    position = np.argsort(-z, axis=None, kind="stable")[:total]
    position = position[z.ravel()[position] > 0]
    position = position[np.argsort(position // d_sae, kind="stable")]  # each row stays sorted by falling value
    token, feature = np.divmod(position, d_sae)
    count = np.bincount(token, minlength=n)
    slot = np.arange(len(token)) - (np.cumsum(count) - count)[token]
    indices = np.zeros((n, max(count.max(initial=0), 1)), np.int64)
    values = np.zeros(indices.shape)
    indices[token, slot], values[token, slot] = feature, z[token, feature]
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.folder import DERIVED, Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.encode import pre_activations
from sae_runtime.exports.graphs.external import external
from sae_runtime.exports.graphs.graph import Graph

# A bundle lists its features by falling limit. A TopK for each group of similar limits costs far less than one TopK
# for all features, which is as deep as the largest limit.
_GROUP_EDGES = (0, 64, 1024)

Matches = tuple[ir.Value, ir.Value, ir.Value]  # token i64, feature i64 and value f32 of each match


def joint_graph(bundle: Bundle, specs: Mapping[str, TensorSpec]) -> ir.Model:
    """The batch rule: x f32 [n, d_in] -> indices i64, values f32 [n, w]; w is the largest number of matches of a row.

    Optional inputs: valid bool [n] or [1], k f64 [], and for feature choice max_density f64 [d_sae]. A row that is not
    valid has no match and adds nothing to the total. A valid row gets NaN values and no match where it holds NaN or
    Inf, or where it is so large that its pre-activations do.

    Args:
        bundle: a mutual or feature choice bundle.
        specs: the arrays of derived.safetensors; feature choice reads `max_density`.

    >>> from sae_runtime.bundle.folder import read
    >>> [value.name for value in joint_graph(read(bundle_path), {}).graph.inputs]
    ['x', 'valid', 'k']
    """
    graph = Graph("encode_joint")
    architecture, allocation = bundle.manifest.architecture, bundle.manifest.allocation
    assert allocation is not None
    x = graph.input("x", np.float32, ["n", architecture.d_in])
    valid = graph.input("valid", np.bool_, ["valid"], default=[True])
    k = graph.input("k", np.float64, [], default=allocation.k)

    n = graph.op("Shape", x, start=0, end=1)
    valid = graph.op("Expand", valid, n)
    tokens = graph.op("ReduceSum", graph.cast(valid, np.float64), keepdims=0)
    z = pre_activations(graph, bundle, x)
    # trace is 0 for a finite row and NaN for another, since 0 times Inf is NaN. z can overflow where x does not.
    trace = graph.op(
        "Add",
        graph.op("ReduceSum", graph.op("Mul", x, 0.0), [1], keepdims=0),
        graph.op("Mul", graph.op("ReduceSum", z, [1], keepdims=0), 0.0),
    )
    trace = graph.op("Where", valid, trace, 0.0)
    usable = graph.op("And", valid, graph.op("Not", graph.op("IsNaN", trace)))
    z = graph.op("Where", graph.op("Unsqueeze", usable, [1]), z, 0.0)

    total = _rounded(graph, k, tokens)
    if allocation.kind != "feature":
        matches = _mutual(graph, z, total, architecture.d_sae)
    else:
        default = external("max_density", DERIVED, specs["max_density"])
        density = graph.input("max_density", np.float64, [architecture.d_sae], default)
        limit = graph.op("Min", _rounded(graph, density, tokens), n)
        matches = _feature(graph, z, total, limit, n, architecture.d_sae)
    indices, values = _rows(graph, *matches, n)
    values = graph.op("Add", values, graph.op("Unsqueeze", trace, [1]))
    graph.output(indices, "indices", np.int64, ["n", "w"])
    graph.output(values, "values", np.float32, ["n", "w"])
    return graph.model()


def _rounded(graph: Graph, share: ir.Value, tokens: ir.Value) -> ir.Value:
    """round(share * tokens) as i64; a half rounds to the even number."""
    return graph.cast(graph.op("Round", graph.op("Mul", share, tokens)), np.int64)


def _mutual(graph: Graph, z: ir.Value, total: ir.Value, d_sae: int) -> Matches:
    """The matches with the `total` largest z, by falling value."""
    value, position = _largest(graph, graph.flat(z), total)
    token = graph.op("Div", position, d_sae)
    return token, graph.op("Sub", position, graph.op("Mul", token, d_sae)), value


def _feature(graph: Graph, z: ir.Value, total: ir.Value, limit: ir.Value, n: ir.Value, d_sae: int) -> Matches:
    """The matches with the `total` largest z among the limit[i] largest of every column i, by falling value."""
    columns = graph.op("Transpose", z, perm=[1, 0])
    parts: list[Matches] = []
    edges = [edge for edge in _GROUP_EDGES if edge < d_sae] + [d_sae]
    for begin, end in zip(edges, edges[1:], strict=False):
        group = graph.op("Slice", columns, [begin], [end], [0])
        depths = graph.op("Unsqueeze", graph.op("Slice", limit, [begin], [end], [0]), [1])
        # One at least, where there is a row: OpenVINO has no TopK of nothing.
        depth = graph.op("Max", graph.op("ReduceMax", depths, keepdims=0), graph.op("Min", n, 1))
        value, token = graph.ops("TopK", 2, group, graph.op("Reshape", depth, [1]))
        value = graph.op("Where", graph.op("Less", graph.range(depth), depths), value, 0.0)
        ids = graph.op("Unsqueeze", graph.op("Range", begin, end, 1), [1])
        parts.append((token, graph.op("Expand", ids, graph.op("Shape", value)), value))
    token, feature, value = (graph.op("Concat", *map(graph.flat, kind), axis=0) for kind in zip(*parts, strict=True))
    value, position = _largest(graph, value, total)
    return graph.op("Gather", token, position), graph.op("Gather", feature, position), value


def _largest(graph: Graph, vector: ir.Value, total: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The `total` largest positive numbers of a vector by falling value, and their positions."""
    limit = graph.op("Min", graph.op("Reshape", total, [1]), graph.op("Shape", vector))
    values, position = graph.ops("TopK", 2, vector, graph.op("Max", limit, [0]))
    positive = graph.cast(graph.op("Greater", values, 0.0), np.int64)
    count = graph.op("Reshape", graph.op("ReduceSum", positive), [1])
    return graph.op("Slice", values, [0], count), graph.op("Slice", position, [0], count)


def _rows(graph: Graph, token: ir.Value, feature: ir.Value, value: ir.Value, n: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Matches by falling value, regrouped by token: indices i64 and values f32 [n, w], w >= 1."""
    matches = graph.op("Shape", value)
    rank = graph.range(matches)
    key = graph.op("Add", graph.op("Mul", token, matches), rank)
    order = graph.ops("TopK", 2, key, matches, largest=0)[1]  # by token, then by rank: each row stays sorted
    token, feature, value = (graph.op("Gather", part, order) for part in (token, feature, value))
    ones = graph.op("Expand", [1], matches)
    count = graph.op("ScatterElements", graph.op("Expand", 0, n), token, ones, axis=0, reduction="add")
    begin = graph.op("CumSum", count, 0, exclusive=1)
    slot = graph.op("Sub", rank, graph.op("Gather", begin, token))
    # The added 1 makes at least one slot, and keeps ReduceMax away from an empty vector.
    slots = graph.op("ReduceMax", graph.op("Concat", count, [1], axis=0), keepdims=1)
    where = graph.op("Concat", graph.op("Unsqueeze", token, [1]), graph.op("Unsqueeze", slot, [1]), axis=1)
    shape = graph.op("Concat", n, slots, axis=0)
    indices = graph.op("ScatterND", graph.op("Expand", 0, shape), where, feature)
    values = graph.op("ScatterND", graph.op("Expand", 0.0, shape), where, value)
    return indices, values
