"""The graph that a splice puts into a host graph: it reads features of an activation and edits them.

In numpy, with `encode` for the features [b, t, d_sae] by the served rule, 0 where a feature is not active:

    f = encode(x)
    indices = np.argsort(-f, axis=2, kind="stable")[:, :, :slots]
    values = np.take_along_axis(f, indices, axis=2)

    chosen = np.take_along_axis(f, features[:, None], axis=2)
    edited = np.clip(scale[:, None] * chosen + shift[:, None], low[:, None], high[:, None])
    holds = (np.take_along_axis(f, when[:, None], axis=2) > above[:, None]).all(axis=2, keepdims=True)
    delta = gate * holds * (edited - chosen)
    start = f @ W_dec + b_dec if replace else x
    y = start + (delta @ W_dec[features] + holds * direction)

An SAE that normalises x multiplies the reconstruction and delta @ W_dec by the size of each token.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.decode import completed, known_features
from sae_runtime.exports.graphs.encode import above, pre_activations, weight
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.select import first_rows, not_empty, selected_slots
from sae_runtime.exports.graphs.steer import Edits, change, edit_inputs, some_tokens, values_of


@dataclass(frozen=True)
class Intervention:
    """What callers ask of an activation, as values of the graph: the edits of steer.onnx, a direction and a condition.

    direction f32, broadcastable to [b, t, d_in]; when i64 and above f32, [b or 1, c].
    """

    edits: Edits
    direction: ir.Value
    when: ir.Value
    above: ir.Value


def insert_graph(
    bundle: Bundle,
    dtype: ir.DataType,
    *,
    read: bool,
    edit: bool,
    replace: bool = False,
    rows: TensorSpec | None = None,
) -> ir.Model:
    """x [b, t, d_in] -> y [b, t, d_in], both of `dtype`, and indices i64, values f32 [b, t, w].

    With `read`, the graph gives the features of x, for each token by falling value, and 0 in unused slots. An optional
    input, slots i64 [1], is the number of slots w of this call; 0 reads nothing and costs next to nothing.

    With `edit`, the graph gives y. Its optional inputs are those of steer.onnx; direction f32, broadcastable to
    [b, t, d_in]; when i64 and above f32, [b or 1, c]. Edits and direction apply at tokens where each feature of `when`
    exceeds its `above`; by default they apply at all tokens.

    With `replace`, the graph gives y too, and the reconstruction takes the place of x in the sum.

    Args:
        bundle: the SAE.
        dtype: the type of x; the graph computes in float32.
        read: give indices and values.
        edit: give y.
        replace: give y, made of the reconstruction.
        rows: where the bundle holds W_enc transposed, if it does.
    """
    graph = Graph("splice")
    d_in = bundle.manifest.architecture.d_in
    given = graph.input("x", dtype.numpy(), ["b", "t", d_in])
    x = given if dtype == ir.DataType.FLOAT else graph.cast(given, np.float32)
    slots = graph.input("slots", np.int64, [1], default=[bundle.manifest.slots]) if read else None
    asked = _intervention(graph) if edit or replace else None
    z = _shared_preactivations(graph, bundle, x, slots, asked, replace=replace)
    if slots is not None:
        indices, values = graph.either(
            "read",
            graph.op("Greater", slots, graph.constant([0], np.int64)),
            lambda branch: _read(branch, bundle, x, z, slots),
            lambda branch: _no_slots(branch, x),
        )
        graph.output(indices, "indices", np.int64, ["b", "t", "w"])
        graph.output(values, "values", np.float32, ["b", "t", "w"])
    if asked is not None:
        (added,) = graph.either(
            "edit",
            _is_asked(graph, asked),
            lambda branch: [_added(branch, bundle, x, asked, rows, z)],
            lambda branch: [branch.op("Identity", branch.constant([[[0]]], np.float32))],
        )
        start = _reconstruction(graph, bundle, x, z) if replace and z is not None else x
        y = graph.op("Add", start, added)
        y = y if dtype == ir.DataType.FLOAT else graph.cast(y, dtype.numpy())
        graph.output(y, "y", dtype.numpy(), ["b", "t", d_in])
    return graph.model()


def _intervention(graph: Graph) -> Intervention:
    edits = edit_inputs(graph)
    direction = graph.input("direction", np.float32, ["db", "dt", "dd"], default=[[[0.0]]])
    when = graph.input("when", np.int64, ["wb", "c"], default=np.empty((1, 0)))
    above = graph.input("above", np.float32, ["above_b", "above_c"], default=[[0.0]])
    return Intervention(edits, direction, when, above)


def _is_asked(graph: Graph, asked: Intervention) -> ir.Value:
    """Whether there is an edit, or a direction other than 0 (NaN is one)."""
    edits = graph.op("Greater", graph.op("Size", asked.edits.features), graph.constant(0, np.int64))
    length = graph.op("ReduceL1", asked.direction, keepdims=0)
    return graph.op("Or", edits, graph.op("Not", graph.op("Equal", length, graph.constant(0, np.float32))))


def _shared_preactivations(
    graph: Graph, bundle: Bundle, x: ir.Value, slots: ir.Value | None, asked: Intervention | None, *, replace: bool
) -> ir.Value | None:
    """All pre-activations, where several parts of the graph may need them; of no token where a call needs none."""
    if replace:
        return pre_activations(graph, bundle, x)
    if asked is None or bundle.manifest.architecture.selection == "threshold":
        return None
    sizes = [graph.op("Shape", features, start=1) for features in (asked.edits.features, asked.when)]
    sizes += [] if slots is None else [slots]
    return pre_activations(graph, bundle, some_tokens(graph, x, graph.op("Max", *sizes)))


def _no_slots(graph: Graph, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [b, t, 0]."""
    zero, last = graph.constant([0], np.int64), graph.constant([2], np.int64)
    values = graph.op("Slice", x, zero, zero, last)
    return graph.cast(values, np.int64), values


def _above_threshold(graph: Graph, bundle: Bundle, z: ir.Value) -> ir.Value:
    return above(graph, z, weight(graph, bundle, "threshold"))


def _read(graph: Graph, bundle: Bundle, x: ir.Value, z: ir.Value | None, slots: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [b, t, w] of the largest features, as encode.onnx gives them.

    z holds the pre-activations, where the graph has them already.
    """
    architecture = bundle.manifest.architecture
    if z is None:
        z = pre_activations(graph, bundle, x)
    f = _above_threshold(graph, bundle, z) if architecture.selection == "threshold" else z
    flat = graph.op("Reshape", f, graph.constant([-1, architecture.d_sae], np.int64), allowzero=1)
    flat, n = not_empty(graph, flat, architecture.d_sae)
    indices, values = (first_rows(graph, part, n) for part in selected_slots(graph, architecture, flat, slots))
    limit = architecture.k if architecture.k and architecture.selection == "groupmax" else architecture.d_sae
    slots = graph.op("Min", slots, graph.constant([limit], np.int64))
    shape = graph.op("Concat", graph.op("Shape", x, end=2), slots, axis=0)
    # A call without slots computes no token; its result still has all tokens.
    return graph.op("Reshape", indices, shape, allowzero=1), graph.op("Reshape", values, shape, allowzero=1)


def _added(
    graph: Graph, bundle: Bundle, x: ir.Value, asked: Intervention, rows: TensorSpec | None, z: ir.Value | None
) -> ir.Value:
    """What is added to x: delta @ W_dec[features] + holds * direction, [b, t, d_in]."""
    last, one = graph.constant([2], np.int64), graph.constant(1, np.float32)
    # A weight of 1 for each condition. NaN, of an unknown feature or in `above`, stays NaN and reaches y.
    weights = graph.op("Add", _nan_only(graph, asked.above), one)
    when, weights = known_features(graph, bundle.manifest.architecture.d_sae, asked.when, weights)
    f = values_of(graph, bundle, x, when, rows, z)
    failed = graph.op("LessOrEqual", f, graph.op("Unsqueeze", asked.above, graph.constant([1], np.int64)))
    # Not ReduceSum: onnxruntime before 1.32 takes the sum of nothing for nothing.
    failures = graph.op("MatMul", graph.cast(failed, np.float32), graph.op("Unsqueeze", weights, last))
    holds = graph.op("Max", graph.op("Sub", one, failures), graph.constant(0, np.float32))
    gated = dataclasses.replace(asked.edits, gate=graph.op("Mul", asked.edits.gate, holds))
    return graph.op("Add", change(graph, bundle, x, gated, rows, z), graph.op("Mul", holds, asked.direction))


def _nan_only(graph: Graph, value: ir.Value) -> ir.Value:
    """0 where the value is a number, NaN where it is not."""
    return graph.op("Mul", value, graph.constant(0, np.float32))


def _reconstruction(graph: Graph, bundle: Bundle, x: ir.Value, z: ir.Value) -> ir.Value:
    """The reconstruction of x [b, t, d_in] from its active features."""
    architecture, decoder = bundle.manifest.architecture, weight(graph, bundle, "W_dec")
    if architecture.selection == "threshold":
        total = graph.op("MatMul", _above_threshold(graph, bundle, z), decoder)
    else:
        slot = graph.constant([2], np.int64)
        indices, values = _read(graph, bundle, x, z, graph.constant([architecture.k or 0], np.int64))
        picked = graph.op("MatMul", graph.op("Unsqueeze", values, slot), graph.op("Gather", decoder, indices))
        total = graph.op("Squeeze", picked, slot)
    return completed(graph, bundle, graph.op("Add", total, weight(graph, bundle, "b_dec")), x)
