"""encode_exact.onnx: the features of encode.onnx, found by an int8 product and decided in float32.

The product bounds every pre-activation from above (equation (7) of docs/reference/certified-encoding.md). A feature is
a candidate where its bound exceeds the token's cut. The graph computes only candidates in float32. The cut is the
threshold; for top k it is the least of k features that the graph computes first (equation (8)). A token with very many
candidates is not `certain`, and the runtime gives it to encode.onnx. In numpy, with z [n, d_sae], sizes, group_bound
and unit as in approximation.py, and with `leading` and `find_candidates` as their docstrings write them:

    kept, cut, ceiling = np.zeros_like(z), 0 * unit, np.inf + unit
    if threshold is None:
        features, largest, ceiling = leading(sizes, group_bound)
        values = np.take_along_axis(z, features, axis=1)
        cut = values.min(axis=1, keepdims=True) * unit
        np.put_along_axis(kept, features, np.where(largest > ceiling, values, 0), axis=1)
    else:
        z = np.where(z > threshold, z, 0)
    features, token, certain = find_candidates(cut, ceiling)
    kept[token, features] = z[token, features]
    indices = np.argsort(-kept, axis=1, kind="stable")[:, :slots]
    values = np.take_along_axis(kept, indices, axis=1)
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.certified.approximation import Approximation, approximate, errors, leading
from sae_runtime.exports.certified.candidates import LIMITS, Bounds, Build, Candidates, Limits, find_candidates
from sae_runtime.exports.certified.integers import LEVELS, rounded
from sae_runtime.exports.graphs.encode import above, centred, threshold_input, weight, write_slots
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.normalise import normalised
from sae_runtime.exports.graphs.select import first_rows, pick, tokens


class Scored(NamedTuple):
    """Features i64 and their activations f32, both [n, any]; an unused slot has activation 0."""

    features: ir.Value
    values: ir.Value


class Blocks(NamedTuple):
    """Candidates in blocks: a block is one small matrix, to be multiplied with the vector of one token.

    Attributes:
        used: the token of each block and its rank among the token's blocks, i64 [2, m].
        token: the first row of `used`, i64 [m].
        position: of a block's members among all candidates, i64 [m, block].
        end: the position where the candidates of the token end, i64 [m, 1].
        widest: the most blocks of a token, and 1 at least, i64 [1].
    """

    used: ir.Value
    token: ir.Value
    position: ir.Value
    end: ir.Value
    widest: ir.Value


def exact_graph(bundle: Bundle, specs: Mapping[str, TensorSpec], limits: Limits = LIMITS) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, slots], certain bool [n].

    A row that is `certain` is the row of encode.onnx, up to equal values at the cut; other rows are not complete.
    Optional inputs: slots i64 [1], threshold f32 [1] or [d_sae] where the bundle has one, and levels f32 []: 127 where
    int8 products do not saturate.

    Args:
        bundle: whose features these are; its d_sae is a multiple of 16.
        specs: the arrays that `write_derived` made for the graph "exact".
        limits: sizes that change the speed only.
    """
    graph, architecture = Graph("encode_exact"), bundle.manifest.architecture
    stored = partial(graph.derived, specs=specs)
    x, n = tokens(graph, architecture.d_in)
    x = normalised(graph, architecture, x).x
    threshold = threshold_input(graph, bundle)
    slots = graph.input("slots", np.int64, [1], default=[bundle.manifest.slots])
    levels = graph.input("levels", np.float32, [], default=LEVELS)
    small = rounded(graph, x, levels, stored)
    approximation = approximate(graph, bundle, small, levels, stored, threshold)
    build = Build(graph, bundle, stored, centred(graph, bundle, x), limits)
    if threshold is None:
        scored, cut, ceiling = _best(build, approximation, slots)
    else:
        cut = graph.op("Expand", 0.0, graph.op("Shape", approximation.unit))
        scored, ceiling = [], None
    bounds = Bounds(approximation, *errors(graph, small, build.c, stored), cut, ceiling)
    candidates, certain = find_candidates(build, bounds)
    scored.append(_score(build, candidates, threshold))
    write_slots(graph, *_slots(graph, scored, slots, architecture.d_sae), n)
    graph.output(first_rows(graph, certain, n), "certain", np.bool_, ["n"])
    return graph.model()


def _best(build: Build, approximation: Approximation, slots: ir.Value) -> tuple[list[Scored], ir.Value, ir.Value]:
    """About the k largest features in float32, the cut of equation (8) for all others, and their ceiling [n, 1]."""
    graph = build.graph
    slots = graph.op("Min", graph.op("Max", slots, [1]), [approximation.d_sae])
    features, largest, ceiling = leading(graph, approximation, build.stored, slots)
    values = _pre_activations(build, features)
    cut = graph.op("Mul", graph.op("ReduceMin", values, [1]), approximation.unit)
    values = graph.op("Where", graph.op("Greater", largest, ceiling), values, 0.0)
    return [Scored(features, values)], cut, ceiling


def _score(build: Build, candidates: Candidates, threshold: ir.Value | None) -> Scored:
    """The candidates with their activations in float32, which are 0 where they do not exceed the threshold."""
    graph, block = build.graph, build.limits.block
    used, token, position, end, widest = _blocks(graph, candidates, block)
    feature = pick(graph, candidates.features, graph.op("Min", position, graph.op("Sub", end, [1])))
    values = _pre_activations(build, feature, token)
    values = graph.op("Where", graph.op("Less", position, end), values, 0.0)
    if threshold is not None:
        thresholds = graph.op("Expand", threshold, [build.bundle.manifest.architecture.d_sae])
        values = above(graph, values, pick(graph, thresholds, feature))

    n, where = graph.op("Shape", candidates.number), graph.op("Transpose", used, perm=[1, 0])
    shape = graph.op("Concat", n, widest, [block], axis=0)
    slots = graph.op("Concat", n, graph.op("Mul", widest, [block]), axis=0)
    features = graph.op("ScatterND", graph.op("Expand", 0, shape), where, feature)
    values = graph.op("ScatterND", graph.op("Expand", 0.0, shape), where, values)
    return Scored(*(graph.op("Reshape", part, slots, allowzero=1) for part in (features, values)))


def _blocks(graph: Graph, candidates: Candidates, block: int) -> Blocks:
    number = graph.op("Div", graph.op("Add", candidates.number, block - 1), block)
    widest = graph.op("ReduceMax", graph.op("Concat", number, [1], axis=0), keepdims=1)
    used = graph.op("NonZero", graph.op("Less", graph.range(widest), graph.op("Unsqueeze", number, [1])))
    token, rank = (graph.op("Squeeze", part, [0]) for part in graph.ops("Split", 2, used, axis=0, num_outputs=2))
    begin = graph.op("Gather", candidates.begin, token)
    end = graph.op("Gather", graph.op("Add", candidates.begin, candidates.number), token)
    begin = graph.op("Add", begin, graph.op("Mul", rank, block))
    position = graph.op("Add", graph.op("Unsqueeze", begin, [1]), [np.arange(block)])
    return Blocks(used, token, position, graph.op("Unsqueeze", end, [1]), widest)


def _pre_activations(build: Build, feature: ir.Value, token: ir.Value | None = None) -> ir.Value:
    """relu(c W_enc + b_enc) of single features: [m, w] for the features i64 [m, w].

    `token` i64 [m] is the token of each row of features; by default row i belongs to token i. The graph copies a few
    MB of W_enc's rows at a time, since all of them would go to memory and back.
    """
    graph, bundle, rows = build.graph, build.bundle, build.stored("W_enc_rows")
    m = graph.op("Shape", feature, start=0, end=1)
    at_once = max(build.limits.row_bytes // (4 * bundle.manifest.architecture.d_in), 1)
    times = graph.op("Add", graph.op("Div", graph.op("Size", feature), at_once), [1])
    size = graph.op("Div", graph.op("Sub", graph.op("Add", m, times), [1]), times)
    block = graph.op("Min", graph.range(graph.op("Mul", times, size)), graph.op("Sub", m, [1]))
    block = graph.op("Reshape", block, graph.op("Concat", times, size, axis=0), allowzero=1)

    def multiply(inner: Graph, block: ir.Value) -> ir.Value:
        x = inner.op("Gather", build.c, block if token is None else inner.op("Gather", token, block))
        w = inner.op("Gather", rows, inner.op("Gather", feature, block))
        return inner.op("Squeeze", inner.op("MatMul", w, inner.op("Unsqueeze", x, [2])), [2])

    # onnx.reference does not stack what the steps give: it puts their rows into one matrix. Both are flat here.
    product = graph.op("Flatten", graph.loop("first" if token is None else "rest", multiply, block), axis=-1)
    product = graph.op("Slice", product, [0], m, [0])
    return graph.op("Relu", graph.op("Add", product, pick(graph, weight(graph, bundle, "b_enc"), feature)))


def _slots(graph: Graph, scored: list[Scored], slots: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(slots, d_sae)] of the largest activations, by falling value; unused slots are 0."""
    features, values = (
        graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0] for parts in zip(*scored, strict=True)
    )
    slots = graph.op("Min", slots, [d_sae])
    filled = graph.op("Min", slots, graph.op("Shape", values, start=1, end=2))
    values, position = graph.ops("TopK", 2, values, filled)
    indices = graph.op("GatherElements", features, position, axis=1)
    pads = graph.op("Concat", [0, 0, 0], graph.op("Sub", slots, filled), axis=0)
    return graph.op("Pad", indices, pads), graph.op("Pad", values, pads)
