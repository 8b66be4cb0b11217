"""encode_exact.onnx: the features of encode.onnx, from an int8 product that names candidates.

The product and what rounding may change bound every feature from above (integers.py). Whose bound lies above the cut
is a candidate and is computed again in float32, from its row of W_enc; nobody else can be a match. The cut is theta.
For top k, the k features that the product takes for the largest are computed first, and the least of these values is
the cut for the others. A token with very many candidates is not `certain`, and is for encode.onnx.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports.approximation import Approximation, approximate, errors, leading, of_members
from sae_runtime.exports.encode import above, centred, threshold_input, weight
from sae_runtime.exports.graph import Graph, external
from sae_runtime.exports.integers import LEVELS, Stored, rounded
from sae_runtime.exports.normalise import normalised
from sae_runtime.exports.select import GROUP, first_rows, taken, tokens
from sae_runtime.tensors import TensorSpec

_MOST_GROUPS = 512  # with candidates, of a token; beyond, they cost as much as the product that they save
_BLOCK = 8
_ROWS_BYTES = 3 << 20  # of W_enc, copied and multiplied together: they stay in cache


class Found(NamedTuple):
    """Features i64 and their values f32, both [n, any]; an unused slot has value 0."""

    features: ir.Value
    values: ir.Value


class Candidates(NamedTuple):
    """Features, token by token; how many each token has, and how many there are before its."""

    features: ir.Value
    number: ir.Value
    begin: ir.Value


def exact_graph(bundle: Bundle, specs: Mapping[str, TensorSpec]) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, width], certain bool [n].

    Where `certain`, rows are those of encode.onnx, up to equal values at the cut; the others are not whole. Optional
    inputs: width i64 [1], for threshold bundles theta f32 [1] or [d_sae], and levels f32 []: 127 where int8 products do
    not saturate.

    Args:
        bundle: whose features these are; its d_sae is a multiple of 16.
        specs: where derived.safetensors holds what `write_derived` made for precision "exact".
    """
    graph = Graph("encode_exact")

    def stored(name: str) -> ir.Value:
        return graph.weight(external(name, DERIVED, specs[name]))

    encoder = bundle.manifest.encoder
    x, n = tokens(graph, encoder.d_in)
    x = normalised(graph, encoder, x).x
    theta = threshold_input(graph, bundle)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width])
    levels = graph.input("levels", np.float32, [], default=LEVELS)
    small = rounded(graph, x, levels, stored)
    all_of = approximate(graph, bundle, small, levels, stored, theta)
    c, rows = centred(graph, bundle, x), stored("W_enc_rows")
    if theta is None:
        best, cut, ceiling = _best(graph, bundle, all_of, stored, c, rows, width)
    else:
        nothing = graph.op("Expand", graph.constant(0, np.float32), graph.op("Shape", all_of.unit))
        best, cut, ceiling = None, nothing, None
    candidates, certain = _candidates(graph, all_of, errors(graph, small, c, stored), stored, cut, ceiling)
    found = _rescored(graph, bundle, c, rows, candidates, theta)
    indices, values = _slots(graph, [found] if best is None else [best, found], width, encoder.d_sae)
    indices, values, certain = (first_rows(graph, part, n) for part in (indices, values, certain))
    graph.output(indices, "indices", np.int64, ["n", "width"])
    graph.output(values, "values", np.float32, ["n", "width"])
    graph.output(certain, "certain", np.bool_, ["n"])
    return graph.model()


def _best(
    graph: Graph, bundle: Bundle, all_of: Approximation, stored: Stored, c: ir.Value, rows: ir.Value, width: ir.Value
) -> tuple[Found, ir.Value, ir.Value]:
    """The k features that are approximately the largest, and what decides about the others, both [n, 1].

    That is: the cut, and the ceiling below which their approximations lie.
    """
    some = graph.op("Max", width, graph.constant([1], np.int64))
    some = graph.op("Min", some, graph.constant([bundle.manifest.encoder.d_sae], np.int64))
    features, size, ceiling = leading(graph, all_of, stored, some)
    values = _values(graph, bundle, c, rows, features)
    cut = graph.op("Mul", graph.op("ReduceMin", values, graph.constant([1], np.int64)), all_of.unit)
    values = graph.op("Where", graph.op("Greater", size, ceiling), values, graph.constant(0, np.float32))
    return Found(features, values), cut, ceiling


def _candidates(
    graph: Graph,
    all_of: Approximation,
    errors: tuple[ir.Value, ir.Value],
    stored: Stored,
    cut: ir.Value,
    ceiling: ir.Value | None,
) -> tuple[Candidates, ir.Value]:
    """Those whose bound lies above the token's cut, but not above the ceiling; and whether a token's are all, bool [n].

    A token that has too many gets none. Cut and ceiling are [n, 1].
    """
    error, holds = errors
    one, zero, flat = graph.constant([1], np.int64), graph.constant(0, np.int64), graph.constant([-1], np.int64)
    mask = graph.op("Greater", graph.op("Add", all_of.of_groups, error), cut)
    groups = graph.op("ReduceSum", graph.cast(mask, np.float32), one)
    certain = graph.op("And", graph.op("LessOrEqual", groups, graph.constant(_MOST_GROUPS, np.float32)), holds)
    mask = graph.op("And", mask, certain)
    groups = graph.op("Where", certain, groups, graph.constant(0, np.float32))
    groups = graph.cast(graph.op("Squeeze", groups, one), np.int64)
    at = graph.op("Squeeze", graph.op("NonZero", graph.op("Reshape", mask, flat)), graph.constant([0], np.int64))
    count = graph.constant(all_of.d_sae // GROUP, np.int64)
    token = graph.op("Div", at, count)
    group = graph.op("Sub", at, graph.op("Mul", token, count))

    def of_token(each: ir.Value) -> ir.Value:
        return graph.op("Unsqueeze", taken(graph, each, token), one)

    size = of_members(graph, all_of, group, at, of_token(all_of.unit))
    error = graph.op("Unsqueeze", taken(graph, error, at), one)
    bound = graph.op("Add", size, graph.op("Mul", graph.op("Gather", stored("int8_share"), group), error))
    chosen = graph.op("Greater", bound, of_token(cut))
    if ceiling is not None:  # those above it have been computed
        chosen = graph.op("And", chosen, graph.op("LessOrEqual", size, of_token(ceiling)))
    hit = graph.op("Squeeze", graph.op("NonZero", graph.op("Reshape", chosen, flat)), graph.constant([0], np.int64))
    # Hits count the members of chosen groups only; in the order of features, each group stands elsewhere.
    number = graph.constant(GROUP, np.int64)
    elsewhere = graph.op("Mul", graph.op("Sub", group, graph.range(graph.op("Shape", group))), number)
    place = graph.op("Add", hit, taken(graph, elsewhere, graph.op("Div", hit, number)))
    features = taken(graph, stored("int8_order"), place)
    # Sums over a token's groups, as differences of running sums.
    found = graph.cast(graph.op("ReduceSum", graph.cast(chosen, np.float32), one, keepdims=0), np.int64)
    running = graph.op("Concat", graph.constant([0], np.int64), graph.op("CumSum", found, zero), axis=0)
    end = graph.op("Gather", running, graph.op("CumSum", groups, zero))
    begin = graph.op("Gather", running, graph.op("CumSum", groups, zero, exclusive=1))
    return Candidates(features, graph.op("Sub", end, begin), begin), graph.op("Squeeze", certain, one)


def _rescored(
    graph: Graph, bundle: Bundle, c: ir.Value, rows: ir.Value, candidates: Candidates, theta: ir.Value | None
) -> Found:
    """The candidates with their values in float32, those that do not pass theta with 0."""
    features, count, begin = candidates
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
    feature = taken(graph, features, graph.op("Min", at, graph.op("Sub", end, one)))

    nothing = graph.constant(0, np.float32)
    values = _values(graph, bundle, c, rows, feature, token)
    values = graph.op("Where", graph.op("Less", at, end), values, nothing)
    if theta is not None:
        each = graph.op("Expand", theta, graph.constant([d_sae], np.int64))
        values = above(graph, values, taken(graph, each, feature))

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
    return graph.op("Relu", graph.op("Add", product, taken(graph, weight(graph, bundle, "b_enc"), feature)))


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
