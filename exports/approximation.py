"""What the int8 product says of every feature, without a pass over all of them but for the maxima of groups.

Features stand in the order of `integers.quantise`, in groups of 16. All is in units of a token's scale.
"""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import Bundle
from sae_runtime.exports.graph import Graph
from sae_runtime.exports.integers import Rounded, Stored, product, sizes
from sae_runtime.exports.select import GROUP, group_maxima, groups_of, taken

_LARGEST = 1e30  # of a token's rounding errors: beyond, and where they are NaN, there is no bound


class Approximation(NamedTuple):
    """The features before their relu, less their thresholds where they have one.

    Attributes:
        d_sae: how many features there are.
        product: of `integers.product`, f32 [n, d_sae].
        unit: one over the scale, f32 [n, 1].
        own: biases less thresholds, f32 [groups, 16]; they are in units of 1.
        theta: these thresholds by feature, or the least of them where they are alike, f32 [d_sae] or [1]; or None.
        of_groups: none of a group's features is larger, f32 [n, groups].
    """

    d_sae: int
    product: ir.Value
    unit: ir.Value
    own: ir.Value
    theta: ir.Value | None
    of_groups: ir.Value


def approximate(
    graph: Graph, bundle: Bundle, x: Rounded, levels: ir.Value, stored: Stored, theta: ir.Value | None
) -> Approximation:
    """All features of some activations, approximately.

    Args:
        graph: where to compute them.
        bundle: whose features they are.
        x: activations.
        levels: of `integers.rounded`.
        stored: gives the arrays of `integers.quantise`.
        theta: thresholds f32 [1] or [d_sae] by feature; None where the bundle has none.
    """
    d_sae, allocation = bundle.manifest.encoder.d_sae, bundle.manifest.allocation
    p, unit, own = product(graph, x.q, levels, stored), graph.op("Reciprocal", x.scale), stored("int8_bias")
    if theta is not None:
        if allocation is not None and allocation.kind != "feature":  # all alike: the least of them is cheaper
            theta = graph.op("ReduceMin", theta)
            own = graph.op("Sub", own, theta)
        else:
            theta = graph.op("Expand", theta, graph.constant([d_sae], np.int64))
            own = graph.op("Sub", own, groups_of(graph, taken(graph, theta, stored("int8_order"))))
    most = graph.op("ReduceMax", own, graph.constant([1], np.int64), keepdims=0)
    of_groups = graph.op("Add", group_maxima(graph, p, d_sae), graph.op("Mul", unit, most))
    return Approximation(d_sae, p, unit, own, theta, of_groups)


def errors(graph: Graph, x: Rounded, c: ir.Value, stored: Stored) -> tuple[ir.Value, ir.Value]:
    """By how much a group's features are larger at most, f32 [n, groups], and for which tokens that holds, bool [n, 1].

    Larger in float32, too, where they are computed from c = x - b_pre f32 [n, d_in].
    """
    size, first, one = sizes(graph, x, c, stored), graph.constant([0], np.int64), graph.constant([1], np.int64)
    holds = graph.op("LessOrEqual", graph.op("Slice", size, first, one, one), graph.constant(_LARGEST, np.float32))
    return graph.op("MatMul", size, stored("int8_bound")), holds


def of_members(graph: Graph, all_of: Approximation, group: ir.Value, at: ir.Value, unit: ir.Value) -> ir.Value:
    """Features f32 [..., 16] of groups [...], which are the `at`-th of all tokens' groups; unit [..., 1] is theirs."""
    members = graph.op("Gather", groups_of(graph, all_of.product), at)
    return graph.op("Add", members, graph.op("Mul", graph.op("Gather", all_of.own, group), unit))


def leading(
    graph: Graph, all_of: Approximation, stored: Stored, slots: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Features i64 [n, slots] that are large, f32 [n, slots], by falling size; and a ceiling [n, 1] of all others.

    All that lie above the ceiling are among these, and possibly some that do not: a group may have more large ones
    than its maximum tells. There is a slot at least.
    """
    d_sae, size = all_of.d_sae, graph.constant(GROUP, np.int64)

    def passing(all_sizes: ir.Value) -> ir.Value:  # TopK is quick where most are equal, as most are below a threshold
        return all_sizes if all_of.theta is None else graph.op("Relu", all_sizes)

    zero, one, last, end = (graph.constant([i], np.int64) for i in (0, 1, -1, 2**62))
    more = graph.op("Min", graph.op("Add", slots, one), graph.constant([d_sae], np.int64))
    some = graph.op("Min", more, graph.constant([d_sae // GROUP], np.int64))
    maxima, group = graph.ops("TopK", 2, passing(all_of.of_groups), some, sorted=0)
    token = graph.op("Unsqueeze", graph.range(graph.op("Shape", maxima, start=0, end=1)), one)
    at = graph.op("Add", graph.op("Mul", token, graph.constant(d_sae // GROUP, np.int64)), group)
    members = of_members(graph, all_of, group, at, graph.op("Unsqueeze", all_of.unit, one))
    largest, slot = graph.ops("TopK", 2, passing(graph.op("Flatten", members, axis=1)), more)
    ceiling = graph.op("Max", graph.op("ReduceMin", maxima, one), graph.op("Slice", largest, last, end, one))
    largest, slot = (graph.op("Slice", part, zero, slots, one) for part in (largest, slot))
    which = graph.op("Div", slot, size)
    place = graph.op("Mul", graph.op("Sub", graph.op("GatherElements", group, which, axis=1), which), size)
    return taken(graph, stored("int8_order"), graph.op("Add", place, slot)), largest, ceiling
