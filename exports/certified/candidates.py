"""Find the features that may be active by their bounds; the graph computes only these in float32 (exact.py)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.graphs import GROUP
from sae_runtime.exports.certified.approximation import Approximation, member_sizes
from sae_runtime.exports.certified.integers import Stored
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.select import pick


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes that change the speed of encode_exact.onnx, and never its features.

    Attributes:
        groups: with candidates that a certain token may have; more cost as much as the dense product.
        row_bytes: of the rows of W_enc that are copied and multiplied together, so that they stay in cache.
        block: candidates of one token that are multiplied together.
    """

    groups: int = 512
    row_bytes: int = 3 << 20
    block: int = 8


LIMITS = Limits()


@dataclass(frozen=True)
class Build:
    """The graph under construction, and the inputs of its parts: the bundle, its derived weights, c = x' - b_pre."""

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


class Bounds(NamedTuple):
    """What decides which features are candidates.

    Attributes:
        approximation: of all features.
        error: of each group, f32 [n, groups], as `approximation.errors` gives it.
        bounded: whether the error of a token is a bound, bool [n, 1].
        cut: only a feature whose bound exceeds it is a candidate, f32 [n, 1].
        ceiling: a feature whose size exceeds it is no candidate, f32 [n, 1]; None means infinity.
    """

    approximation: Approximation
    error: ir.Value
    bounded: ir.Value
    cut: ir.Value
    ceiling: ir.Value | None


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


def find_candidates(build: Build, bounds: Bounds) -> tuple[Candidates, ir.Value]:
    """The candidates of every token, and certain bool [n]; a token that is not certain has no candidates.

    In numpy, with sizes and group_bound as in approximation.py, and a ceiling of infinity for None:

        mask = group_bound + error > cut
        certain = mask.sum(axis=1) <= limits.groups
        chosen = sizes + share * error[:, :, None] > cut[:, :, None]
        chosen &= (sizes <= ceiling[:, :, None]) & (mask & certain[:, None])[:, :, None]
        token, place = np.nonzero(chosen.reshape(len(chosen), -1))
        features = order[place]
    """
    graph = build.graph
    groups, certain = groups_above_cut(build, bounds)
    chosen = members_above_cut(build, bounds, groups)
    position = _true_positions(graph, chosen)
    # A position counts the members of these groups only: place = 16 group + position - 16 column.
    column = graph.range(graph.op("Shape", groups.group))
    first = graph.op("Mul", graph.op("Sub", groups.group, column), GROUP)
    place = graph.op("Add", position, pick(graph, first, graph.op("Div", position, GROUP)))
    features = pick(graph, build.stored("int8_order"), place)
    in_group = graph.op("ReduceSum", graph.cast(chosen, np.float32), [1], keepdims=0)
    # The candidates of a token are a difference of running sums.
    running = graph.op("Concat", [0], graph.op("CumSum", graph.cast(in_group, np.int64), 0), axis=0)
    end = graph.op("Gather", running, graph.op("CumSum", groups.number, 0))
    begin = graph.op("Gather", running, graph.op("CumSum", groups.number, 0, exclusive=1))
    return Candidates(features, graph.op("Sub", end, begin), begin), graph.op("Squeeze", certain, [1])


def groups_above_cut(build: Build, bounds: Bounds) -> tuple[GroupsAboveCut, ir.Value]:
    """The groups whose bound exceeds the cut, and certain bool [n, 1]: the token is bounded and has few groups.

    A token that is not certain has no groups.
    """
    graph, approximation = build.graph, bounds.approximation
    mask = graph.op("Greater", graph.op("Add", approximation.group_bound, bounds.error), bounds.cut)
    number = graph.op("ReduceSum", graph.cast(mask, np.float32), [1])
    certain = graph.op("And", graph.op("LessOrEqual", number, float(build.limits.groups)), bounds.bounded)
    mask = graph.op("And", mask, certain)
    number = graph.cast(graph.op("Squeeze", graph.op("Where", certain, number, 0.0), [1]), np.int64)
    row, count = _true_positions(graph, mask), approximation.d_sae // GROUP
    token = graph.op("Div", row, count)
    return GroupsAboveCut(row, token, graph.op("Sub", row, graph.op("Mul", token, count)), number), certain


def members_above_cut(build: Build, bounds: Bounds, groups: GroupsAboveCut) -> ir.Value:
    """Which members of the groups are candidates, bool [m, 16]."""
    graph = build.graph

    def of_token(numbers: ir.Value) -> ir.Value:
        return graph.op("Unsqueeze", pick(graph, numbers, groups.token), [1])

    unit = of_token(bounds.approximation.unit)
    sizes = member_sizes(graph, bounds.approximation, groups.group, groups.row, unit)
    error = graph.op("Unsqueeze", pick(graph, bounds.error, groups.row), [1])
    share = graph.op("Gather", build.stored("int8_share"), groups.group)
    bound = graph.op("Add", sizes, graph.op("Mul", share, error))
    chosen = graph.op("Greater", bound, of_token(bounds.cut))
    if bounds.ceiling is None:
        return chosen
    return graph.op("And", chosen, graph.op("LessOrEqual", sizes, of_token(bounds.ceiling)))


def _true_positions(graph: Graph, mask: ir.Value) -> ir.Value:
    """Where a mask is true, as i64 positions in the flattened mask."""
    return graph.op("Squeeze", graph.op("NonZero", graph.op("Reshape", mask, [-1])), [0])
