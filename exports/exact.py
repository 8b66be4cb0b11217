"""encode_exact.onnx: the features of encode.onnx, found by an int8 product and decided in float32.

The product bounds every pre-activation from above (equation (7) of docs/certified-encoding.md). A feature is a
candidate where its bound lies above the token's cut, and only candidates are computed in float32. The cut is the
threshold; for top k it is the least of k features that were computed first (equation (8)). A token with very many
candidates is not `certain`, and its caller runs encode.onnx on it. `exact_in_numpy` is the whole computation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports.approximation import (
    Approximation,
    Numbers,
    approximate,
    errors,
    leading,
    leading_in_numpy,
    member_sizes,
)
from sae_runtime.exports.encode import above, centred, threshold_input, weight
from sae_runtime.exports.graph import Graph, external
from sae_runtime.exports.integers import LEVELS, Stored, rounded
from sae_runtime.exports.normalise import normalised
from sae_runtime.exports.select import IndicesAndValues, first_rows, pick, tokens
from sae_runtime.graphs import GROUP
from sae_runtime.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes that change how fast encode_exact.onnx is, and never what it finds.

    Attributes:
        groups: with candidates that a certain token may have; more cost as much as the dense product.
        row_bytes: of W_enc's rows that are copied and multiplied together, so that they stay in cache.
        block: candidates of one token that are multiplied together.
    """

    groups: int = 512
    row_bytes: int = 3 << 20
    block: int = 8


LIMITS = Limits()


class Scored(NamedTuple):
    """Features i64 and their activations f32, both [n, any]; an unused slot has activation 0."""

    features: ir.Value
    values: ir.Value


class Candidates(NamedTuple):
    """Features i64 token by token, their number in each token i64 [n], and the position of each token's first [n]."""

    features: ir.Value
    number: ir.Value
    begin: ir.Value


class GroupsAboveCut(NamedTuple):
    """Groups that may hold candidates, token by token; m is their number.

    Attributes:
        row: token * groups + group, i64 [m].
        token: i64 [m].
        group: i64 [m].
        number: of each token, i64 [n].
    """

    row: ir.Value
    token: ir.Value
    group: ir.Value
    number: ir.Value


class Bounds(NamedTuple):
    """What `exact_in_numpy` knows of all features, by place: arrays of `approximation` and of `Int8Encoder`."""

    sizes: Numbers  # [n, d_sae]
    group_bound: Numbers  # [n, groups]
    error: Numbers  # [n, groups]
    share: Numbers  # [groups, 16]
    order: NDArray[np.int64]  # [d_sae]
    unit: Numbers  # [n, 1]


@dataclass(frozen=True)
class Build:
    """The graph under construction, and what its parts read: the bundle, its derived weights, and c = x' - b_pre."""

    graph: Graph
    bundle: Bundle
    stored: Stored
    c: ir.Value
    limits: Limits


def exact_in_numpy(
    z: Numbers, bounds: Bounds, slots: int, theta: Numbers | None, limits: Limits = LIMITS
) -> tuple[*IndicesAndValues, NDArray[np.bool_]]:
    """What `exact_graph` computes, with `slots` at least 1.

    The graph computes only the pre-activations z [n, d_sae] that are read here.
    """
    kept, cut, ceiling = np.zeros_like(z), np.zeros_like(bounds.unit), np.full_like(bounds.unit, np.inf)
    if theta is None:
        features, largest, ceiling = leading_in_numpy(bounds.sizes, bounds.group_bound, bounds.order, slots)
        values = np.take_along_axis(z, features, axis=1)
        cut = values.min(axis=1, keepdims=True) * bounds.unit
        np.put_along_axis(kept, features, np.where(largest > ceiling, values, 0), axis=1)
    features, token, certain = candidates_in_numpy(bounds, cut, ceiling, limits)
    values = z[token, features]
    kept[token, features] = values if theta is None else np.where(values > theta[features], values, 0)
    indices = np.argsort(-kept, axis=1, kind="stable")[:, :slots]
    return indices, np.take_along_axis(kept, indices, axis=1), certain


def exact_graph(bundle: Bundle, specs: Mapping[str, TensorSpec], limits: Limits = LIMITS) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, width], certain bool [n].

    Where `certain`, rows are those of encode.onnx, up to equal values at the cut; the others are not whole. Optional
    inputs: width i64 [1], for threshold bundles theta f32 [1] or [d_sae], and levels f32 []: 127 where int8 products do
    not saturate.

    Args:
        bundle: whose features these are; its d_sae is a multiple of 16.
        specs: where derived.safetensors holds what `write_derived` made for the graph "exact".
        limits: sizes that change the speed alone.
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
    approximation = approximate(graph, bundle, small, levels, stored, theta)
    build = Build(graph, bundle, stored, centred(graph, bundle, x), limits)
    if theta is None:
        scored, cut, ceiling = _best(build, approximation, width)
    else:
        cut = graph.op("Expand", graph.constant(0, np.float32), graph.op("Shape", approximation.unit))
        scored, ceiling = [], None
    error, bounded = errors(graph, small, build.c, stored)
    candidates, certain = find_candidates(build, approximation, error, bounded, cut, ceiling)
    scored.append(_score(build, candidates, theta))
    indices, values = _slots(graph, scored, width, encoder.d_sae)
    indices, values, certain = (first_rows(graph, part, n) for part in (indices, values, certain))
    graph.output(indices, "indices", np.int64, ["n", "width"])
    graph.output(values, "values", np.float32, ["n", "width"])
    graph.output(certain, "certain", np.bool_, ["n"])
    return graph.model()


def _best(build: Build, approximation: Approximation, width: ir.Value) -> tuple[list[Scored], ir.Value, ir.Value]:
    """About the k largest features in float32, the cut of equation (8) for all others, and their ceiling [n, 1]."""
    graph = build.graph
    slots = graph.op("Max", width, graph.constant([1], np.int64))
    slots = graph.op("Min", slots, graph.constant([build.bundle.manifest.encoder.d_sae], np.int64))
    features, largest, ceiling = leading(graph, approximation, build.stored, slots)
    values = _pre_activations(build, features)
    cut = graph.op("Mul", graph.op("ReduceMin", values, graph.constant([1], np.int64)), approximation.unit)
    values = graph.op("Where", graph.op("Greater", largest, ceiling), values, graph.constant(0, np.float32))
    return [Scored(features, values)], cut, ceiling


def candidates_in_numpy(
    bounds: Bounds, cut: Numbers, ceiling: Numbers, limits: Limits
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Features and tokens of what `find_candidates` finds, and which tokens are certain [n]."""
    n = len(bounds.sizes)
    mask = bounds.group_bound + bounds.error > cut
    certain = mask.sum(axis=1, keepdims=True) <= limits.groups
    mask &= certain
    sizes = bounds.sizes.reshape(n, -1, GROUP)
    chosen = sizes + bounds.share * bounds.error[:, :, None] > cut[:, :, None]
    chosen &= mask[:, :, None] & (sizes <= ceiling[:, :, None])
    token, place = np.nonzero(chosen.reshape(n, -1))
    return bounds.order[place], token, certain[:, 0]


def find_candidates(
    build: Build,
    approximation: Approximation,
    error: ir.Value,
    bounded: ir.Value,
    cut: ir.Value,
    ceiling: ir.Value | None,
) -> tuple[Candidates, ir.Value]:
    """The features whose bound lies above the cut and whose size does not lie above the ceiling; certain bool [n].

    Cut and ceiling are [n, 1]. A token that is not certain has no candidates.
    """
    graph = build.graph
    groups, certain = groups_above_cut(build, approximation, error, bounded, cut)
    chosen = members_above_cut(build, approximation, groups, error, cut, ceiling)
    position = _true_positions(graph, chosen)
    # A position counts the members of these groups alone: place = 16 group + position - 16 column.
    column, size = graph.range(graph.op("Shape", groups.group)), graph.constant(GROUP, np.int64)
    first = graph.op("Mul", graph.op("Sub", groups.group, column), size)
    place = graph.op("Add", position, pick(graph, first, graph.op("Div", position, size)))
    features = pick(graph, build.stored("int8_order"), place)
    in_group = graph.op("ReduceSum", graph.cast(chosen, np.float32), graph.constant([1], np.int64), keepdims=0)
    number, begin = segment_sums(graph, graph.cast(in_group, np.int64), groups.number)
    return Candidates(features, number, begin), graph.op("Squeeze", certain, graph.constant([1], np.int64))


def groups_above_cut(
    build: Build, approximation: Approximation, error: ir.Value, bounded: ir.Value, cut: ir.Value
) -> tuple[GroupsAboveCut, ir.Value]:
    """The groups whose bound lies above the cut, and certain bool [n, 1]: the token is bounded and has few groups.

    A token that is not certain has no groups.
    """
    graph, one = build.graph, build.graph.constant([1], np.int64)
    mask = graph.op("Greater", graph.op("Add", approximation.group_bound, error), cut)
    number = graph.op("ReduceSum", graph.cast(mask, np.float32), one)
    certain = graph.op("And", graph.op("LessOrEqual", number, graph.constant(build.limits.groups, np.float32)), bounded)
    mask = graph.op("And", mask, certain)
    number = graph.op("Where", certain, number, graph.constant(0, np.float32))
    number = graph.cast(graph.op("Squeeze", number, one), np.int64)
    row = _true_positions(graph, mask)
    count = graph.constant(approximation.d_sae // GROUP, np.int64)
    token = graph.op("Div", row, count)
    group = graph.op("Sub", row, graph.op("Mul", token, count))
    return GroupsAboveCut(row, token, group, number), certain


def members_above_cut(
    build: Build,
    approximation: Approximation,
    groups: GroupsAboveCut,
    error: ir.Value,
    cut: ir.Value,
    ceiling: ir.Value | None,
) -> ir.Value:
    """Which members of the groups are candidates, bool [m, 16]."""
    graph, one = build.graph, build.graph.constant([1], np.int64)

    def of_token(numbers: ir.Value) -> ir.Value:
        return graph.op("Unsqueeze", pick(graph, numbers, groups.token), one)

    sizes = member_sizes(graph, approximation, groups.group, groups.row, of_token(approximation.unit))
    error = graph.op("Unsqueeze", pick(graph, error, groups.row), one)
    bound = graph.op("Add", sizes, graph.op("Mul", graph.op("Gather", build.stored("int8_share"), groups.group), error))
    chosen = graph.op("Greater", bound, of_token(cut))
    if ceiling is not None:  # `_best` has computed all that lie above it
        chosen = graph.op("And", chosen, graph.op("LessOrEqual", sizes, of_token(ceiling)))
    return chosen


def segment_sums(graph: Graph, numbers: ir.Value, segments: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Sums i64 [n] of consecutive runs of numbers i64 [m], and the sum of all before each run, i64 [n].

    `segments` i64 [n] are the lengths of the runs. A sum is a difference of running sums.
    """
    zero = graph.constant(0, np.int64)
    running = graph.op("Concat", graph.constant([0], np.int64), graph.op("CumSum", numbers, zero), axis=0)
    end = graph.op("Gather", running, graph.op("CumSum", segments, zero))
    begin = graph.op("Gather", running, graph.op("CumSum", segments, zero, exclusive=1))
    return graph.op("Sub", end, begin), begin


def _true_positions(graph: Graph, mask: ir.Value) -> ir.Value:
    """Where a mask is true, as i64 positions in the flattened mask."""
    vector = graph.op("Reshape", mask, graph.constant([-1], np.int64))
    return graph.op("Squeeze", graph.op("NonZero", vector), graph.constant([0], np.int64))


def _score(build: Build, candidates: Candidates, theta: ir.Value | None) -> Scored:
    """The candidates with their activations in float32, which are 0 where they do not pass the threshold."""
    graph, block = build.graph, build.limits.block
    used, token, position, end, widest = _blocks(graph, candidates, block)
    last = graph.op("Sub", end, graph.constant([1], np.int64))
    feature = pick(graph, candidates.features, graph.op("Min", position, last))

    nothing = graph.constant(0, np.float32)
    values = _pre_activations(build, feature, token)
    values = graph.op("Where", graph.op("Less", position, end), values, nothing)
    if theta is not None:
        thresholds = graph.op("Expand", theta, graph.constant([build.bundle.manifest.encoder.d_sae], np.int64))
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
    at_once = max(build.limits.row_bytes // (4 * bundle.manifest.encoder.d_in), 1)
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


def _slots(graph: Graph, scored: list[Scored], width: ir.Value, d_sae: int) -> tuple[ir.Value, ir.Value]:
    """Indices and values [n, min(width, d_sae)] of the largest activations, by falling value; unused slots are 0."""
    features, values = (
        graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0] for parts in zip(*scored, strict=True)
    )
    width = graph.op("Min", width, graph.constant([d_sae], np.int64))
    slots = graph.op("Min", width, graph.op("Shape", values, start=1, end=2))
    values, position = graph.ops("TopK", 2, values, slots)
    indices = graph.op("GatherElements", features, position, axis=1)
    pads = graph.op("Concat", graph.constant([0, 0, 0], np.int64), graph.op("Sub", width, slots), axis=0)
    return graph.op("Pad", indices, pads), graph.op("Pad", values, pads)
