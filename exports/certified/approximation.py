"""What the int8 product says about every feature, by groups of 16 features.

Features are in the order of `integers.quantise`, and a *place* is a position in this order. Sizes are in units of the
token's scale s, as in equation (3) of docs/reference/certified-encoding.md; a size may be negative, since relu comes
later. The graph computes the product and the maxima of groups for all features, and sizes for groups that matter only.
In numpy, for product [n, d_sae], unit [n, 1] and bias [groups, 16], all by place:

    members = product.reshape(len(product), -1, 16)
    sizes = members + unit[:, :, None] * bias
    group_bound = members.max(axis=2) + unit * bias.max(axis=1)
"""

from typing import NamedTuple

import onnx_ir as ir

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.graphs import GROUP
from sae_runtime.exports.certified.integers import Rounded, Stored, lengths, product
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.select import by_group, group_maxima, pick

_LARGEST_ERROR = 1e30  # of a token's rounding errors |e|; a token with more, or with NaN, has no bound


class Approximation(NamedTuple):
    """Approximate sizes of all features, less their thresholds where the SAE has thresholds.

    Attributes:
        d_sae: number of features.
        product: s_j q . Q_j of equation (3), by place, f32 [n, d_sae].
        unit: 1 / s, f32 [n, 1].
        bias: biases less thresholds, by place, f32 [groups, 16]; they are not divided by s.
        threshold: these thresholds by feature f32 [d_sae], or the least of them f32 [1] where all are equal, or None.
        group_bound: no feature of the group has a larger size, f32 [n, groups].
    """

    d_sae: int
    product: ir.Value
    unit: ir.Value
    bias: ir.Value
    threshold: ir.Value | None
    group_bound: ir.Value


def approximate(
    graph: Graph, bundle: Bundle, x: Rounded, levels: ir.Value, stored: Stored, threshold: ir.Value | None
) -> Approximation:
    """Approximate all features of a batch.

    Args:
        graph: where to compute them.
        bundle: whose features they are.
        x: the activations in int8.
        levels: as in `integers.rounded`.
        stored: gives the arrays of `quantise`.
        threshold: thresholds f32 [1] or [d_sae] by feature; None where the bundle has none.
    """
    d_sae, allocation = bundle.manifest.architecture.d_sae, bundle.manifest.allocation
    p, unit, bias = product(graph, x.q, levels, stored), graph.op("Reciprocal", x.scale), stored("int8_bias")
    if threshold is not None:
        if allocation is not None and allocation.kind != "feature":  # all are equal, and one number is cheaper
            threshold = graph.op("ReduceMin", threshold)
            bias = graph.op("Sub", bias, threshold)
        else:
            threshold = graph.op("Expand", threshold, [d_sae])
            bias = graph.op("Sub", bias, by_group(graph, pick(graph, threshold, stored("int8_order"))))
    largest_bias = graph.op("ReduceMax", bias, [1], keepdims=0)
    group_bound = graph.op("Add", group_maxima(graph, p, d_sae), graph.op("Mul", unit, largest_bias))
    return Approximation(d_sae, p, unit, bias, threshold, group_bound)


def errors(graph: Graph, x: Rounded, c: ir.Value, stored: Stored) -> tuple[ir.Value, ir.Value]:
    """The error f32 [n, groups] of equation (7), and the tokens for which it is a bound, bool [n, 1].

    The error also covers pre-activations that are computed in float32 from c = x' - b_pre f32 [n, d_in].
    """
    both = lengths(graph, x, c, stored)
    bounded = graph.op("LessOrEqual", graph.op("Slice", both, [0], [1], [1]), _LARGEST_ERROR)
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


def leading(
    graph: Graph, approximation: Approximation, stored: Stored, slots: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Features i64 [n, slots] with large sizes, these sizes by falling size, and a ceiling [n, 1] for all others.

    Every feature whose size exceeds the ceiling is among these features. Other features may be among them too, since a
    group may have more large features than its bound tells. `slots` is at least 1.

    In numpy, with sizes and group_bound as in the module's docstring, or their relu where thresholds select:

        group = np.argsort(-group_bound, axis=1, kind="stable")[:, : slots + 1]
        maxima = np.take_along_axis(group_bound, group, axis=1)
        members = np.take_along_axis(sizes, group[:, :, None], axis=1)
        members = members.reshape(len(sizes), -1)
        position = np.argsort(-members, axis=1, kind="stable")[:, : slots + 1]
        largest = np.take_along_axis(members, position, axis=1)
        ceiling = np.maximum(maxima.min(axis=1), largest[:, -1])[:, None]
        position, largest = position[:, :slots], largest[:, :slots]
        place = np.take_along_axis(group, position // 16, axis=1) * 16 + position % 16
        features = order[place]
    """
    d_sae = approximation.d_sae

    def passing(sizes: ir.Value) -> ir.Value:  # TopK is quick where most numbers are equal, as they are below 0
        return sizes if approximation.threshold is None else graph.op("Relu", sizes)

    depth = graph.op("Min", graph.op("Add", slots, [1]), [d_sae])
    count = graph.op("Min", depth, [d_sae // GROUP])
    maxima, group = graph.ops("TopK", 2, passing(approximation.group_bound), count, sorted=0)
    token = graph.op("Unsqueeze", graph.range(graph.op("Shape", maxima, start=0, end=1)), [1])
    row = graph.op("Add", graph.op("Mul", token, d_sae // GROUP), group)
    members = member_sizes(graph, approximation, group, row, graph.op("Unsqueeze", approximation.unit, [1]))
    largest, position = graph.ops("TopK", 2, passing(graph.op("Flatten", members, axis=1)), depth)
    ceiling = graph.op("Max", graph.op("ReduceMin", maxima, [1]), graph.op("Slice", largest, [-1], [2**62], [1]))
    largest, position = (graph.op("Slice", part, [0], slots, [1]) for part in (largest, position))
    column = graph.op("Div", position, GROUP)
    # place = 16 group + position - 16 column
    first = graph.op("Mul", graph.op("Sub", graph.op("GatherElements", group, column, axis=1), column), GROUP)
    return pick(graph, stored("int8_order"), graph.op("Add", first, position)), largest, ceiling
