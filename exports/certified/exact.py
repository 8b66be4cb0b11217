"""encode_exact.onnx: the features of encode.onnx, found by an int8 product and decided in float32.

The product bounds every pre-activation from above (equation (7) of docs/certified-encoding.md). A feature is a
candidate where its bound lies above the token's cut, and only candidates are computed in float32. The cut is the
threshold; for top k it is the least of k features that were computed first (equation (8)). A token with very many
candidates is not `certain`, and its caller runs encode.onnx on it. `exact_in_numpy` is the whole computation.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.folder import DERIVED, Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.certified.approximation import (
    Approximation,
    Numbers,
    approximate,
    errors,
    leading,
    leading_in_numpy,
)
from sae_runtime.exports.certified.candidates import (
    LIMITS,
    Bounds,
    Build,
    Candidates,
    Limits,
    candidates_in_numpy,
    find_candidates,
)
from sae_runtime.exports.certified.integers import LEVELS, rounded
from sae_runtime.exports.graphs.encode import above, centred, threshold_input, weight
from sae_runtime.exports.graphs.graph import Graph, external
from sae_runtime.exports.graphs.normalise import normalised
from sae_runtime.exports.graphs.select import first_rows, pick, tokens


class Scored(NamedTuple):
    """Features i64 and their activations f32, both [n, any]; an unused slot has activation 0."""

    features: ir.Value
    values: ir.Value


def exact_in_numpy(
    z: Numbers, bounds: Bounds, slots: int, threshold: Numbers | None, limits: Limits = LIMITS
) -> tuple[NDArray[np.bool_]]:
    """What `exact_graph` computes, with `slots` at least 1.

    The graph computes only the pre-activations z [n, d_sae] that are read here.
    """
    kept, cut, ceiling = np.zeros_like(z), np.zeros_like(bounds.unit), np.full_like(bounds.unit, np.inf)
    if threshold is None:
        features, largest, ceiling = leading_in_numpy(bounds.sizes, bounds.group_bound, bounds.order, slots)
        values = np.take_along_axis(z, features, axis=1)
        cut = values.min(axis=1, keepdims=True) * bounds.unit
        np.put_along_axis(kept, features, np.where(largest > ceiling, values, 0), axis=1)
    features, token, certain = candidates_in_numpy(bounds, cut, ceiling, limits)
    values = z[token, features]
    kept[token, features] = values if threshold is None else np.where(values > threshold[features], values, 0)
    indices = np.argsort(-kept, axis=1, kind="stable")[:, :slots]
    return indices, np.take_along_axis(kept, indices, axis=1), certain


def exact_graph(bundle: Bundle, specs: Mapping[str, TensorSpec], limits: Limits = LIMITS) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, slots], certain bool [n].

    Where `certain`, rows are those of encode.onnx, up to equal values at the cut; the others are not whole. Optional
    inputs: slots i64 [1], threshold f32 [1] or [d_sae] where the bundle has one, and levels f32 []: 127 where int8
    products do not saturate.

    Args:
        bundle: whose features these are; its d_sae is a multiple of 16.
        specs: where derived.safetensors holds what `write_derived` made for the graph "exact".
        limits: sizes that change the speed alone.
    """
    graph = Graph("encode_exact")

    def stored(name: str) -> ir.Value:
        return graph.weight(external(name, DERIVED, specs[name]))

    architecture = bundle.manifest.architecture
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
        cut = graph.op("Expand", graph.constant(0, np.float32), graph.op("Shape", approximation.unit))
        scored, ceiling = [], None
    error, bounded = errors(graph, small, build.c, stored)
    candidates, certain = find_candidates(build, approximation, error, bounded, cut, ceiling)
    scored.append(_score(build, candidates, threshold))
    indices, values = _slots(graph, scored, slots, architecture.d_sae)
    indices, values, certain = (first_rows(graph, part, n) for part in (indices, values, certain))
    graph.output(indices, "indices", np.int64, ["n", "slots"])
    graph.output(values, "values", np.float32, ["n", "slots"])
    graph.output(certain, "certain", np.bool_, ["n"])
    return graph.model()


def _best(build: Build, approximation: Approximation, slots: ir.Value) -> tuple[list[Scored], ir.Value, ir.Value]:
    """About the k largest features in float32, the cut of equation (8) for all others, and their ceiling [n, 1]."""
    graph = build.graph
    slots = graph.op("Max", slots, graph.constant([1], np.int64))
    slots = graph.op("Min", slots, graph.constant([build.bundle.manifest.architecture.d_sae], np.int64))
    features, largest, ceiling = leading(graph, approximation, build.stored, slots)
    values = _pre_activations(build, features)
    cut = graph.op("Mul", graph.op("ReduceMin", values, graph.constant([1], np.int64)), approximation.unit)
    values = graph.op("Where", graph.op("Greater", largest, ceiling), values, graph.constant(0, np.float32))
    return [Scored(features, values)], cut, ceiling


def _score(build: Build, candidates: Candidates, threshold: ir.Value | None) -> Scored:
    """The candidates with their activations in float32, which are 0 where they do not pass the threshold."""
    graph, block = build.graph, build.limits.block
    used, token, position, end, widest = _blocks(graph, candidates, block)
    last = graph.op("Sub", end, graph.constant([1], np.int64))
    feature = pick(graph, candidates.features, graph.op("Min", position, last))

    nothing = graph.constant(0, np.float32)
    values = _pre_activations(build, feature, token)
    values = graph.op("Where", graph.op("Less", position, end), values, nothing)
    if threshold is not None:
        thresholds = graph.op("Expand", threshold, graph.constant([build.bundle.manifest.architecture.d_sae], np.int64))
        values = above(graph, values, pick(graph, thresholds, feature))

    n, size = graph.op("Shape", candidates.number), graph.constant([block], np.int64)
    where = graph.op("Transpose", used, perm=[1, 0])
    shape = graph.op("Concat", n, widest, size, axis=0)
    slots = graph.op("Concat", n, graph.op("Mul", widest, size), axis=0)
    features = graph.op("ScatterND", graph.op("Expand", graph.constant(0, np.int64), shape), where, feature)
    values = graph.op("ScatterND", graph.op("Expand", nothing, shape), where, values)
    return Scored(*(graph.op("Reshape", part, slots, allowzero=1) for part in (features, values)))


def _blocks(
    graph: Graph, candidates: Candidates, block: int
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value, ir.Value]:
    """Blocks of candidates: each is one small matrix times the vector of one token.

    Returns:
        used i64 [2, m], the token of each block and its rank among the token's blocks; the token alone [m]; position
        [m, block] among all candidates, and end [m, 1], where the token's candidates end; widest i64 [1], the most
        blocks of a token, and 1 at least.
    """
    first, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
    size, steps = graph.constant(block, np.int64), graph.constant([np.arange(block)], np.int64)
    number = graph.op("Div", graph.op("Add", candidates.number, graph.constant(block - 1, np.int64)), size)
    widest = graph.op("ReduceMax", graph.op("Concat", number, one, axis=0), keepdims=1)
    used = graph.op("NonZero", graph.op("Less", graph.range(widest), graph.op("Unsqueeze", number, one)))
    token, rank = (graph.op("Squeeze", part, first) for part in graph.ops("Split", 2, used, axis=0, num_outputs=2))
    begin = graph.op("Gather", candidates.begin, token)
    end = graph.op("Gather", graph.op("Add", candidates.begin, candidates.number), token)
    begin = graph.op("Add", begin, graph.op("Mul", rank, size))
    position = graph.op("Add", graph.op("Unsqueeze", begin, one), steps)
    return used, token, position, graph.op("Unsqueeze", end, one), widest


def _pre_activations(build: Build, feature: ir.Value, token: ir.Value | None = None) -> ir.Value:
    """relu(c W_enc + b_enc) of single features: [m, w] for the features i64 [m, w].

    `token` i64 [m] says whose features they are; by default they are those of the first m tokens. A few MB of W_enc's
    rows are copied at a time, since all of them would go to memory and back.
    """
    graph, bundle, rows = build.graph, build.bundle, build.stored("W_enc_rows")
    one, zero, last = (graph.constant([i], np.int64) for i in (1, 0, 2))
    m = graph.op("Shape", feature, start=0, end=1)
    at_once = max(build.limits.row_bytes // (4 * bundle.manifest.architecture.d_in), 1)
    times = graph.op("Add", graph.op("Div", graph.op("Size", feature), graph.constant(at_once, np.int64)), one)
    size = graph.op("Div", graph.op("Sub", graph.op("Add", m, times), one), times)
    block = graph.op("Min", graph.range(graph.op("Mul", times, size)), graph.op("Sub", m, one))
    block = graph.op("Reshape", block, graph.op("Concat", times, size, axis=0), allowzero=1)

    def multiply(inner: Graph, block: ir.Value) -> ir.Value:
        x = inner.op("Gather", build.c, block if token is None else inner.op("Gather", token, block))
        w = inner.op("Gather", rows, inner.op("Gather", feature, block))
        return inner.op("MatMul", w, inner.op("Unsqueeze", x, last))

    product = graph.op("Flatten", graph.scan("first" if token is None else "rest", multiply, block), axis=2)
    product = graph.op("Slice", product, zero, m, zero)
    return graph.op("Relu", graph.op("Add", product, pick(graph, weight(graph, bundle, "b_enc"), feature)))


def _slots(graph: Graph, scored: list[Scored], slots: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(slots, d_sae)] of the largest activations, by falling value; unused slots are 0."""
    features, values = (
        graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0] for parts in zip(*scored, strict=True)
    )
    slots = graph.op("Min", slots, graph.constant([d_sae], np.int64))
    filled = graph.op("Min", slots, graph.op("Shape", values, start=1, end=2))
    values, position = graph.ops("TopK", 2, values, filled)
    indices = graph.op("GatherElements", features, position, axis=1)
    pads = graph.op("Concat", graph.constant([0, 0, 0], np.int64), graph.op("Sub", slots, filled), axis=0)
    return graph.op("Pad", indices, pads), graph.op("Pad", values, pads)
