"""Find the features that may be active by their bounds; only these are computed in float32 (exact.py)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.graphs import GROUP
from sae_runtime.exports.certified.approximation import Approximation, Numbers, member_sizes
from sae_runtime.exports.certified.integers import Stored
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.select import pick


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
