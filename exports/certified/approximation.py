"""What the int8 product says about every feature, by groups of 16 features.

Features stand in the order of `integers.quantise`, and `place` counts them in this order. Their sizes are in units of
the token's scale s, as in equation (3) of docs/certified-encoding.md; a size may be negative, since relu comes later.
Only the product and the maxima of groups are computed for all features; sizes are computed for the groups that matter.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.graphs import GROUP
from sae_runtime.exports.certified.integers import Rounded, Stored, lengths, product
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.select import by_group, group_maxima, pick

_LARGEST_ERROR = 1e30  # of a token's rounding errors |e|; a token with more, or with NaN, has no bound

Numbers = NDArray[np.floating]


class Approximation(NamedTuple):
    """Approximate sizes of all features, less their thresholds where the SAE has them.

    Attributes:
        d_sae: number of features.
        product: s_j q . Q_j of equation (3), by place, f32 [n, d_sae].
        unit: 1 / s, f32 [n, 1].
        bias: biases less thresholds, by place, f32 [groups, 16]; they are not divided by s.
        threshold: these thresholds by feature f32 [d_sae], or the least of them f32 [1] where all are alike, or None.
        group_bound: no feature of the group has a larger size, f32 [n, groups].
    """

    d_sae: int
    product: ir.Value
    unit: ir.Value
    bias: ir.Value
    threshold: ir.Value | None
    group_bound: ir.Value


def sizes_in_numpy(product: Numbers, unit: Numbers, bias: Numbers) -> tuple[Numbers, Numbers]:
    """The sizes [n, d_sae] that `member_sizes` computes for some groups, and the group_bound of `approximate`."""
    n, d_sae = product.shape
    sizes = product.reshape(n, d_sae // GROUP, GROUP) + unit[:, :, None] * bias
    group_bound = product.reshape(n, d_sae // GROUP, GROUP).max(axis=2) + unit * bias.max(axis=1)
    return sizes.reshape(n, d_sae), group_bound


def approximate(
    graph: Graph, bundle: Bundle, x: Rounded, levels: ir.Value, stored: Stored, threshold: ir.Value | None
) -> Approximation:
    """Approximate all features of a batch.

    Args:
        graph: where to compute them.
        bundle: whose features they are.
        x: the activations in int8.
        levels: as in `integers.rounded`.
        stored: gives the arrays of `Int8Encoder`.
        threshold: thresholds f32 [1] or [d_sae] by feature; None where the bundle has none.
    """
    d_sae, allocation = bundle.manifest.architecture.d_sae, bundle.manifest.allocation
    p, unit, bias = product(graph, x.q, levels, stored), graph.op("Reciprocal", x.scale), stored("int8_bias")
    if threshold is not None:
        if allocation is not None and allocation.kind != "feature":  # all are alike, and one number is cheaper
            threshold = graph.op("ReduceMin", threshold)
            bias = graph.op("Sub", bias, threshold)
        else:
            threshold = graph.op("Expand", threshold, graph.constant([d_sae], np.int64))
            bias = graph.op("Sub", bias, by_group(graph, pick(graph, threshold, stored("int8_order"))))
    largest_bias = graph.op("ReduceMax", bias, graph.constant([1], np.int64), keepdims=0)
    group_bound = graph.op("Add", group_maxima(graph, p, d_sae), graph.op("Mul", unit, largest_bias))
    return Approximation(d_sae, p, unit, bias, threshold, group_bound)


def errors(graph: Graph, x: Rounded, c: ir.Value, stored: Stored) -> tuple[ir.Value, ir.Value]:
    """The error f32 [n, groups] of equation (7), and the tokens for which it is a bound, bool [n, 1].

    It also covers pre-activations that are computed in float32 from c = x' - b_pre f32 [n, d_in].
    """
    both, first, one = lengths(graph, x, c, stored), graph.constant([0], np.int64), graph.constant([1], np.int64)
    bounded = graph.op(
        "LessOrEqual", graph.op("Slice", both, first, one, one), graph.constant(_LARGEST_ERROR, np.float32)
    )
    return graph.op("MatMul", both, stored("int8_bound")), bounded


def member_sizes(
    graph: Graph, approximation: Approximation, group: ir.Value, row: ir.Value, unit: ir.Value
) -> ir.Value:
    """Sizes f32 [..., 16] of the features of groups [...].

    Args:
        graph: where to compute them.
        approximation: of all features.
        group: ids of the groups.
        row: token * groups + group, for the same groups.
        unit: 1 / s of their tokens, [..., 1].
    """
    members = graph.op("Gather", by_group(graph, approximation.product), row)
    return graph.op("Add", members, graph.op("Mul", graph.op("Gather", approximation.bias, group), unit))


def leading_in_numpy(
    sizes: Numbers, group_bound: Numbers, order: NDArray[np.int64], slots: int
) -> tuple[NDArray[np.int64], Numbers, Numbers]:
    """What `leading` computes of sizes [n, d_sae], by place."""
    n, d_sae = sizes.shape
    depth = min(slots + 1, d_sae)
    group = np.argsort(-group_bound, axis=1, kind="stable")[:, : min(depth, d_sae // GROUP)]
    maxima = np.take_along_axis(group_bound, group, axis=1)
    members = np.take_along_axis(sizes.reshape(n, d_sae // GROUP, GROUP), group[:, :, None], axis=1).reshape(n, -1)
    position = np.argsort(-members, axis=1, kind="stable")[:, :depth]
    largest = np.take_along_axis(members, position, axis=1)
    ceiling = np.maximum(maxima.min(axis=1, keepdims=True), largest[:, -1:])
    position, largest = position[:, :slots], largest[:, :slots]
    place = np.take_along_axis(group, position // GROUP, axis=1) * GROUP + position % GROUP
    return order[place], largest, ceiling


def leading(
    graph: Graph, approximation: Approximation, stored: Stored, slots: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Features i64 [n, slots] with large sizes, these sizes by falling size, and a ceiling [n, 1] for all others.

    Every feature whose size lies above the ceiling is among these features. Some of these features may lie below it,
    since a group may have more large features than its bound tells. `slots` is at least 1.
    """
    d_sae, size = approximation.d_sae, graph.constant(GROUP, np.int64)

    def passing(sizes: ir.Value) -> ir.Value:  # most lie below a threshold, and TopK is quick where most are equal
        return sizes if approximation.threshold is None else graph.op("Relu", sizes)

    zero, one, last, end = (graph.constant([i], np.int64) for i in (0, 1, -1, 2**62))
    depth = graph.op("Min", graph.op("Add", slots, one), graph.constant([d_sae], np.int64))
    count = graph.op("Min", depth, graph.constant([d_sae // GROUP], np.int64))
    maxima, group = graph.ops("TopK", 2, passing(approximation.group_bound), count, sorted=0)
    token = graph.op("Unsqueeze", graph.range(graph.op("Shape", maxima, start=0, end=1)), one)
    row = graph.op("Add", graph.op("Mul", token, graph.constant(d_sae // GROUP, np.int64)), group)
    members = member_sizes(graph, approximation, group, row, graph.op("Unsqueeze", approximation.unit, one))
    largest, position = graph.ops("TopK", 2, passing(graph.op("Flatten", members, axis=1)), depth)
    ceiling = graph.op("Max", graph.op("ReduceMin", maxima, one), graph.op("Slice", largest, last, end, one))
    largest, position = (graph.op("Slice", part, zero, slots, one) for part in (largest, position))
    column = graph.op("Div", position, size)
    # place = 16 group + position - 16 column
    first = graph.op("Mul", graph.op("Sub", graph.op("GatherElements", group, column, axis=1), column), size)
    return pick(graph, stored("int8_order"), graph.op("Add", first, position)), largest, ceiling
