"""What a splice puts into a host graph: features read off an activation, and edits of it."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import Bundle
from sae_runtime.exports.decode import completed, known_features
from sae_runtime.exports.encode import above, latents, weight
from sae_runtime.exports.graph import Graph
from sae_runtime.exports.select import first_rows, not_empty, selected_slots
from sae_runtime.exports.steer import Edits, change, edit_inputs, some_tokens, values_of
from sae_runtime.tensors import TensorSpec


@dataclass(frozen=True)
class Intervention:
    """What callers ask of an activation, as values of the graph: edits, and what steer.onnx does not have.

    direction f32, broadcastable to [b, t, d_in]; when i64 and bound f32, [b or 1, c].
    """

    edits: Edits
    direction: ir.Value
    when: ir.Value
    bound: ir.Value


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

    With `read`: the features of x, each token's by falling value, unused slots 0. Optional input: width i64 [1], the w
    of this call; 0 reads nothing and costs next to nothing.

    With `edit`: y = x + holds * (direction + (gate * (f' - f)) W_dec[features]). Optional inputs: those of steer.onnx;
    direction f32, broadcastable to [b, t, d_in]; when i64 and above f32, [b or 1, c]: holds is 1 at tokens where each
    feature of `when` exceeds its `above`, and 0 at others; by default it is 1 everywhere.

    With `replace`: the same, but the reconstruction takes the place of x in the sum.

    Args:
        bundle: the SAE.
        dtype: the type of x; all is computed in float32.
        read: give indices and values.
        edit: give y.
        replace: give y, made of the reconstruction.
        rows: where the bundle holds W_enc transposed, if it does.
    """
    graph = Graph("splice")
    encoder = bundle.manifest.encoder
    given = graph.input("x", dtype.numpy(), ["b", "t", encoder.d_in])
    x = given if dtype == ir.DataType.FLOAT else graph.cast(given, np.float32)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width]) if read else None
    asked = _intervention(graph) if edit or replace else None
    z = _latents(graph, bundle, x, width, asked, replace=replace)
    if width is not None:
        indices, values = graph.either(
            "read",
            graph.op("Greater", width, graph.constant([0], np.int64)),
            lambda branch: _read(branch, bundle, x, z, width),
            lambda branch: _no_slots(branch, x),
        )
        graph.output(indices, "indices", np.int64, ["b", "t", "w"])
        graph.output(values, "values", np.float32, ["b", "t", "w"])
    if asked is not None:
        (total,) = graph.either(
            "edit",
            _is_some(graph, asked),
            lambda branch: [_conditional(branch, bundle, x, asked, rows, z)],
            lambda branch: [branch.op("Identity", branch.constant([[[0]]], np.float32))],
        )
        y = graph.op("Add", _reconstruction(graph, bundle, x, z) if replace and z is not None else x, total)
        y = y if dtype == ir.DataType.FLOAT else graph.cast(y, dtype.numpy())
        graph.output(y, "y", dtype.numpy(), ["b", "t", encoder.d_in])
    return graph.model()


def _intervention(graph: Graph) -> Intervention:
    edits = edit_inputs(graph)
    direction = graph.input("direction", np.float32, ["db", "dt", "dd"], default=[[[0.0]]])
    when = graph.input("when", np.int64, ["wb", "c"], default=np.empty((1, 0)))
    bound = graph.input("above", np.float32, ["above_b", "above_c"], default=[[0.0]])
    return Intervention(edits, direction, when, bound)


def _is_some(graph: Graph, asked: Intervention) -> ir.Value:
    """Whether there is an edit, or a direction other than 0 (NaN is one)."""
    edits = graph.op("Greater", graph.op("Size", asked.edits.features), graph.constant(0, np.int64))
    length = graph.op("ReduceL1", asked.direction, keepdims=0)
    return graph.op("Or", edits, graph.op("Not", graph.op("Equal", length, graph.constant(0, np.float32))))


def _latents(
    graph: Graph, bundle: Bundle, x: ir.Value, width: ir.Value | None, asked: Intervention | None, *, replace: bool
) -> ir.Value | None:
    """All latents, where more than one thing may need them; of no token where a call needs none."""
    if replace:
        return latents(graph, bundle, x)
    if asked is None or bundle.manifest.encoder.selection == "threshold":
        return None
    wanted = [graph.op("Shape", features, start=1) for features in (asked.edits.features, asked.when)]
    return latents(graph, bundle, some_tokens(graph, x, graph.op("Max", *wanted, *([] if width is None else [width]))))


def _no_slots(graph: Graph, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [b, t, 0]."""
    zero, last = graph.constant([0], np.int64), graph.constant([2], np.int64)
    values = graph.op("Slice", x, zero, zero, last)
    return graph.cast(values, np.int64), values


def _served(graph: Graph, bundle: Bundle, z: ir.Value) -> ir.Value:
    return above(graph, z, weight(graph, bundle, "threshold"))


def _read(graph: Graph, bundle: Bundle, x: ir.Value, z: ir.Value | None, width: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [b, t, w] of the largest features, as encode.onnx gives them; z where the graph has it."""
    encoder = bundle.manifest.encoder
    if z is None:
        z = latents(graph, bundle, x)
    f = _served(graph, bundle, z) if encoder.selection == "threshold" else z
    flat = graph.op("Reshape", f, graph.constant([-1, encoder.d_sae], np.int64), allowzero=1)
    flat, n = not_empty(graph, flat, encoder.d_sae)
    indices, values = (first_rows(graph, part, n) for part in selected_slots(graph, encoder, flat, width))
    most = encoder.k if encoder.k and encoder.selection == "groupmax" else encoder.d_sae
    slots = graph.op("Min", width, graph.constant([most], np.int64))
    shape = graph.op("Concat", graph.op("Shape", x, end=2), slots, axis=0)
    # Of no tokens and no slots: of all tokens and no slots.
    return graph.op("Reshape", indices, shape, allowzero=1), graph.op("Reshape", values, shape, allowzero=1)


def _conditional(
    graph: Graph, bundle: Bundle, x: ir.Value, asked: Intervention, rows: TensorSpec | None, z: ir.Value | None
) -> ir.Value:
    """holds * (direction + what the edits add), [b, t, d_in]."""
    edits, bound, last = asked.edits, asked.bound, graph.constant([2], np.int64)
    one = graph.constant(1, np.float32)
    # As numbers, so that NaN (of an unknown feature, or in a bound) stays NaN and is seen.
    when, each = known_features(
        graph, bundle.manifest.encoder.d_sae, asked.when, graph.op("Add", _nan_only(graph, bound), one)
    )
    f = values_of(graph, bundle, x, when, rows, z)
    short = graph.op("LessOrEqual", f, graph.op("Unsqueeze", bound, graph.constant([1], np.int64)))
    # Not ReduceSum: onnxruntime before 1.32 takes the sum of nothing for nothing.
    missed = graph.op("MatMul", graph.cast(short, np.float32), graph.op("Unsqueeze", each, last))
    holds = graph.op("Max", graph.op("Sub", one, missed), graph.constant(0, np.float32))
    gated = dataclasses.replace(edits, gate=graph.op("Mul", edits.gate, holds))
    return graph.op("Add", change(graph, bundle, x, gated, rows, z), graph.op("Mul", holds, asked.direction))


def _nan_only(graph: Graph, value: ir.Value) -> ir.Value:
    """0 where the value is a number, NaN where it is not."""
    return graph.op("Mul", value, graph.constant(0, np.float32))


def _reconstruction(graph: Graph, bundle: Bundle, x: ir.Value, z: ir.Value) -> ir.Value:
    """What all features that fire make of x [b, t, d_in]."""
    encoder, decoder = bundle.manifest.encoder, weight(graph, bundle, "W_dec")
    if encoder.selection == "threshold":
        total = graph.op("MatMul", _served(graph, bundle, z), decoder)
    else:
        slot = graph.constant([2], np.int64)
        indices, values = _read(graph, bundle, x, z, graph.constant([encoder.k or 0], np.int64))
        picked = graph.op("MatMul", graph.op("Unsqueeze", values, slot), graph.op("Gather", decoder, indices))
        total = graph.op("Squeeze", picked, slot)
    return completed(graph, bundle, graph.op("Add", total, weight(graph, bundle, "b_dec")), x)
