"""encode_exact.onnx: the features of encode.onnx, from an int8 product that names candidates.

The product bounds every feature from above (integers.py). Whose bound lies above the cut is a candidate and is computed
again in float32, from its row of W_enc; nobody else can be a match. The cut is theta. For top k, somewhat more than k
features with the largest bounds are computed first, and the k-th largest of these values is the cut for the others. A
token with very many candidates is not `certain`, and is for encode.onnx.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports.derived import Derived
from sae_runtime.exports.encode import above, centred, threshold_input, weight
from sae_runtime.exports.graph import Graph, external
from sae_runtime.exports.integers import LEVELS, product
from sae_runtime.exports.normalise import normalised
from sae_runtime.exports.select import GROUP, first_rows, group_maxima, groups_of, largest, tokens

_MOST_GROUPS = 512  # with candidates, of a token; beyond, they cost as much as the product that they save
_BLOCK = 8
_ROWS_BYTES = 3 << 20  # of W_enc, copied and multiplied together: they stay in cache


class Found(NamedTuple):
    """Features i64 and their values f32, both [n, any]; an unused slot has value 0."""

    features: ir.Value
    values: ir.Value


class Candidates(NamedTuple):
    """Places in the flattened [n, d_sae], ascending; how many each token has, and how many there are before its."""

    place: ir.Value
    number: ir.Value
    begin: ir.Value


def exact_graph(bundle: Bundle, derived: Derived) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, width], certain bool [n].

    Where `certain`, rows are those of encode.onnx, up to equal values at the cut; the others are not whole. Optional
    inputs: width i64 [1], for threshold bundles theta f32 [1] or [d_sae], and levels f32 []: 127 where int8 products do
    not saturate.

    Args:
        bundle: whose features these are; its d_sae is a multiple of 16.
        derived: what `write_derived` made for precision "exact".
    """
    graph = Graph("encode_exact")
    encoder, allocation, plan = bundle.manifest.encoder, bundle.manifest.allocation, derived.plan
    assert plan is not None

    def stored(name: str) -> ir.Value:
        return graph.weight(external(name, DERIVED, derived.specs[name]))

    x, n = tokens(graph, encoder.d_in)
    x = normalised(graph, encoder, x).x
    theta = threshold_input(graph, bundle)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width])
    levels = graph.input("levels", np.float32, [], default=LEVELS)
    bound, scale, parts = product(graph, x, levels, stored, plan, bounded=True)
    c, rows = centred(graph, bundle, x), stored("W_enc_rows")
    if theta is None:
        best, cut, ceiling, apart = _best(graph, bundle, bound, scale, c, rows, width)
        candidates, certain = _candidates(graph, bound, encoder.d_sae, cut, ceiling)
        certain = graph.op("And", certain, apart)
    else:
        best, cut = None, graph.op("Div", graph.op("ReduceMin", theta, keepdims=0), scale)
        if allocation is None or allocation.kind == "feature":  # thresholds differ: the least of them would cut little
            bound = _above_each(graph, bound, scale, theta, encoder.d_sae)
            cut = graph.op("Expand", graph.constant(0, np.float32), graph.op("Shape", scale))
        candidates, certain = _candidates(graph, bound, encoder.d_sae, cut, None)
    for part, digits in zip(parts, plan.digits, strict=True):  # more than the channels hold: there is no bound
        fits = graph.op("LessOrEqual", part, graph.constant(LEVELS * digits, np.float32))
        certain = graph.op("And", certain, fits)
    found = _rescored(graph, bundle, c, rows, candidates, theta)
    indices, values = _slots(graph, [found] if best is None else [best, found], width, encoder.d_sae)
    certain = graph.op("Squeeze", certain, graph.constant([1], np.int64))
    indices, values, certain = (first_rows(graph, part, n) for part in (indices, values, certain))
    graph.output(indices, "indices", np.int64, ["n", "width"])
    graph.output(values, "values", np.float32, ["n", "width"])
    graph.output(certain, "certain", np.bool_, ["n"])
    return graph.model()


def _above_each(graph: Graph, bound: ir.Value, scale: ir.Value, theta: ir.Value, d_sae: int) -> ir.Value:
    """By how much bounds [n, d_sae] exceed each feature's theta, in units of the scale [n, 1]."""
    theta = graph.op("Expand", theta, graph.constant([1, d_sae], np.int64))
    return graph.op("Sub", bound, graph.op("Mul", graph.op("Reciprocal", scale), theta))


def _best(
    graph: Graph, bundle: Bundle, bound: ir.Value, scale: ir.Value, c: ir.Value, rows: ir.Value, width: ir.Value
) -> tuple[Found, ir.Value, ir.Value, ir.Value]:
    """The features with the largest bounds, a quarter more than k, and what decides about the others, all [n, 1].

    That is: the cut, the least bound of the features taken, under which the others' lie, and whether they do or do not
    matter (equal bounds).
    """
    d_sae = bundle.manifest.encoder.d_sae
    one, last, end = (graph.constant([i], np.int64) for i in (1, -1, 2**62))
    some = graph.op("Add", graph.op("Add", width, graph.op("Div", width, graph.constant(4, np.int64))), one)
    some = graph.op("Min", some, graph.constant([d_sae - 1], np.int64))
    features, bounds = largest(graph, bound, graph.op("Add", some, one), d_sae, stable=False)
    following = graph.op("Slice", bounds, last, end, one)
    features, bounds = (
        graph.op("Slice", part, graph.constant([0], np.int64), some, one) for part in (features, bounds)
    )
    values = _values(graph, bundle, c, rows, features)
    ranked = graph.ops("TopK", 2, values, graph.op("Max", graph.op("Min", width, some), one))[0]
    cut = graph.op("Div", graph.op("Slice", ranked, last, end, one), scale)
    cut = graph.op("Where", graph.op("LessOrEqual", width, some), cut, graph.constant(0, np.float32))
    ceiling = graph.op("Slice", bounds, last, end, one)
    apart = graph.op("Or", graph.op("Less", following, ceiling), graph.op("LessOrEqual", following, cut))
    return Found(features, values), cut, ceiling, apart


def _candidates(
    graph: Graph, bound: ir.Value, d_sae: int, cut: ir.Value, ceiling: ir.Value | None
) -> tuple[Candidates, ir.Value]:
    """Those whose bound lies above the token's cut, but below the ceiling; and whether a token has few enough.

    A token that has too many gets none. Cut, ceiling and what is said of the token are [n, 1].
    """
    one, zero, flat = graph.constant([1], np.int64), graph.constant(0, np.int64), graph.constant([-1], np.int64)
    first = graph.constant([0], np.int64)
    mask = graph.op("Greater", group_maxima(graph, bound, d_sae), cut)
    groups = graph.op("ReduceSum", graph.cast(mask, np.float32), one)
    certain = graph.op("LessOrEqual", groups, graph.constant(_MOST_GROUPS, np.float32))
    mask = graph.op("And", mask, certain)
    groups = graph.op("Where", certain, groups, graph.constant(0, np.float32))
    groups = graph.cast(graph.op("Squeeze", groups, one), np.int64)
    group = graph.op("Squeeze", graph.op("NonZero", graph.op("Reshape", mask, flat)), first)
    token = graph.op("Div", group, graph.constant(d_sae // GROUP, np.int64))
    members = graph.op("Gather", groups_of(graph, bound), group)
    chosen = graph.op("Greater", members, graph.op("Gather", cut, token))
    if ceiling is not None:
        chosen = graph.op("And", chosen, graph.op("Less", members, graph.op("Gather", ceiling, token)))
    hit = graph.op("Squeeze", graph.op("NonZero", graph.op("Reshape", chosen, flat)), first)
    # Hits count the members of chosen groups only; each group lies further along by those left out before it.
    size, number = graph.constant(GROUP, np.int64), graph.range(graph.op("Shape", group))
    further = graph.op("Mul", graph.op("Sub", group, number), size)
    place = graph.op("Add", hit, graph.op("Gather", further, graph.op("Div", hit, size)))
    # Sums over a token's groups, as differences of running sums.
    found = graph.cast(graph.op("ReduceSum", graph.cast(chosen, np.float32), one, keepdims=0), np.int64)
    running = graph.op("Concat", first, graph.op("CumSum", found, zero), axis=0)
    end = graph.op("Gather", running, graph.op("CumSum", groups, zero))
    begin = graph.op("Gather", running, graph.op("CumSum", groups, zero, exclusive=1))
    return Candidates(place, graph.op("Sub", end, begin), begin), certain


def _rescored(
    graph: Graph, bundle: Bundle, c: ir.Value, rows: ir.Value, candidates: Candidates, theta: ir.Value | None
) -> Found:
    """The candidates with their values in float32, those that do not pass theta with 0."""
    place, count, begin = candidates
    d_sae = bundle.manifest.encoder.d_sae
    first, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
    size, steps = graph.constant(_BLOCK, np.int64), graph.constant([np.arange(_BLOCK)], np.int64)
    # A token's candidates fill blocks, and a block is one small matrix times one vector.
    blocks = graph.op("Div", graph.op("Add", count, graph.constant(_BLOCK - 1, np.int64)), size)
    most = graph.op("ReduceMax", graph.op("Concat", blocks, one, axis=0), keepdims=1)
    used = graph.op("NonZero", graph.op("Less", graph.range(most), graph.op("Unsqueeze", blocks, one)))
    token, rank = (graph.op("Squeeze", part, first) for part in graph.ops("Split", 2, used, axis=0, num_outputs=2))
    begin, end = graph.op("Gather", begin, token), graph.op("Gather", graph.op("Add", begin, count), token)
    begin = graph.op("Add", begin, graph.op("Mul", rank, size))
    at, end = graph.op("Add", graph.op("Unsqueeze", begin, one), steps), graph.op("Unsqueeze", end, one)
    row = graph.op("Unsqueeze", graph.op("Mul", token, graph.constant(d_sae, np.int64)), one)
    feature = graph.op("Sub", graph.op("Gather", place, graph.op("Min", at, graph.op("Sub", end, one))), row)

    nothing = graph.constant(0, np.float32)
    values = _values(graph, bundle, c, rows, feature, token)
    values = graph.op("Where", graph.op("Less", at, end), values, nothing)
    if theta is not None:
        each = graph.op("Expand", theta, graph.constant([d_sae], np.int64))
        values = above(graph, values, graph.op("Gather", each, feature))

    where = graph.op("Transpose", used, perm=[1, 0])
    shape = graph.op("Concat", graph.op("Shape", count), most, graph.constant([_BLOCK], np.int64), axis=0)
    flat = graph.op("Concat", graph.op("Shape", count), graph.op("Mul", most, size), axis=0)
    features = graph.op("ScatterND", graph.op("Expand", graph.constant(0, np.int64), shape), where, feature)
    values = graph.op("ScatterND", graph.op("Expand", nothing, shape), where, values)
    return Found(*(graph.op("Reshape", part, flat, allowzero=1) for part in (features, values)))


def _values(
    graph: Graph, bundle: Bundle, c: ir.Value, rows: ir.Value, feature: ir.Value, token: ir.Value | None = None
) -> ir.Value:
    """Latents [m, some] of the features [m, some] of c = x' - b_pre [n, d_in], taken at the tokens [m] where given.

    A few MB of W_enc's rows at a time: all of them would go to memory and back.
    """
    one, zero, last = (graph.constant([i], np.int64) for i in (1, 0, 2))
    m, most = graph.op("Shape", feature, start=0, end=1), max(_ROWS_BYTES // (4 * bundle.manifest.encoder.d_in), 1)
    times = graph.op("Add", graph.op("Div", graph.op("Size", feature), graph.constant(most, np.int64)), one)
    size = graph.op("Div", graph.op("Sub", graph.op("Add", m, times), one), times)
    at = graph.op("Min", graph.range(graph.op("Mul", times, size)), graph.op("Sub", m, one))
    at = graph.op("Reshape", at, graph.op("Concat", times, size, axis=0), allowzero=1)

    def some(inner: Graph, at: ir.Value) -> ir.Value:
        x = inner.op("Gather", c, at if token is None else inner.op("Gather", token, at))
        w = inner.op("Gather", rows, inner.op("Gather", feature, at))
        return inner.op("MatMul", w, inner.op("Unsqueeze", x, last))

    product = graph.op("Flatten", graph.scan("first" if token is None else "rest", some, at), axis=2)
    product = graph.op("Slice", product, zero, m, zero)
    return graph.op("Relu", graph.op("Add", product, graph.op("Gather", weight(graph, bundle, "b_enc"), feature)))


def _slots(graph: Graph, parts: list[Found], width: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(width, d_sae)] of the largest values, the slots that are left over 0."""
    features, values = (
        graph.op("Concat", *both, axis=1) if len(parts) > 1 else both[0] for both in zip(*parts, strict=True)
    )
    width = graph.op("Min", width, graph.constant([d_sae], np.int64))
    slots = graph.op("Min", width, graph.op("Shape", values, start=1, end=2))
    values, at = graph.ops("TopK", 2, values, slots)
    indices = graph.op("GatherElements", features, at, axis=1)
    pads = graph.op("Concat", graph.constant([0, 0, 0], np.int64), graph.op("Sub", width, slots), axis=0)
    return graph.op("Pad", indices, pads), graph.op("Pad", values, pads)
