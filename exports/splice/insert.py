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
from sae_runtime.exports.graphs.decode import completed, known_features, weighted_rows
from sae_runtime.exports.graphs.encode import above, pre_activations, weight
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.select import selected_in_batch
from sae_runtime.exports.graphs.steer import Edits, Specs, Steering, change, edit_inputs, some_tokens, values_of


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
    specs: Specs | None = None,
) -> ir.Model:
    """x [b, t, d_in] -> y [b, t, d_in], both of `dtype`, and indices i64, values f32 [b, t, w].

    With `read`, the graph gives the active features of x, for each token by falling value, and 0 in unused slots. An
    optional input, slots i64 [b or 1], asks for w slots; the largest number counts. The default 0 reads nothing and
    costs next to nothing.

    With `edit`, the graph gives y. Its optional inputs are those of steer.onnx; direction f32, broadcastable to
    [b, t, d_in]; when i64 and above f32, [b or 1, c]. Edits and direction apply to the tokens on which every feature
    of `when` exceeds its `above`; by default they apply to all tokens.

    With `replace`, the graph gives y too, and the reconstruction takes the place of x in the sum.

    Args:
        bundle: the SAE.
        dtype: the type of x; the graph computes in float32.
        read: give indices and values.
        edit: give y.
        replace: give y, made of the reconstruction.
        specs: the arrays of derived.safetensors, as in `steer_graph`.

    >>> from sae_runtime.bundle.folder import read
    >>> model = insert_graph(read(bundle_path), ir.DataType.FLOAT, read=True, edit=False)
    >>> [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    ['x', 'slots', 'indices', 'values']
    """
    graph, d_in = Graph("splice"), bundle.manifest.architecture.d_in
    given = graph.input("x", dtype.numpy(), ["b", "t", d_in])
    x = given if dtype == ir.DataType.FLOAT else graph.cast(given, np.float32)
    slots = _slots(graph) if read else None
    asked = _intervention(graph) if edit or replace else None
    z = _shared_preactivations(graph, bundle, x, slots, asked, replace=replace)
    steering = Steering(graph, bundle, x, specs or {}, z)
    if slots is not None:
        indices, values = graph.either(
            "read",
            graph.op("Greater", slots, [0]),
            lambda branch: _read(dataclasses.replace(steering, graph=branch), slots),
            lambda branch: _no_slots(branch, x),
        )
        graph.output(indices, "indices", np.int64, ["b", "t", "w"])
        graph.output(values, "values", np.float32, ["b", "t", "w"])
    if asked is not None:
        (added,) = graph.either(
            "edit",
            _is_asked(graph, asked),
            lambda branch: [_added(dataclasses.replace(steering, graph=branch), asked)],
            lambda branch: [branch.op("Identity", [[[0.0]]])],
        )
        if dtype == ir.DataType.DOUBLE and not replace:
            y = graph.op("Add", given, graph.cast(added, np.float64))  # float32 would take bits from x
        else:
            y = graph.op("Add", _reconstruction(steering) if replace else x, added)
            y = y if dtype == ir.DataType.FLOAT else graph.cast(y, dtype.numpy())
        graph.output(y, "y", dtype.numpy(), ["b", "t", d_in])
    return graph.model()


def _slots(graph: Graph) -> ir.Value:
    """The slots that a call asks for, i64 [1]: a server that puts requests together has one number of each."""
    return graph.op("ReduceMax", graph.input("slots", np.int64, ["sb"], default=[0]))


def _intervention(graph: Graph) -> Intervention:
    edits = edit_inputs(graph)
    direction = graph.input("direction", np.float32, ["db", "dt", "dd"], default=[[[0.0]]])
    when = graph.input("when", np.int64, ["wb", "c"], default=np.empty((1, 0)))
    above = graph.input("above", np.float32, ["above_b", "above_c"], default=[[0.0]])
    return Intervention(edits, direction, when, above)


def _is_asked(graph: Graph, asked: Intervention) -> ir.Value:
    """Whether there is an edit, or a direction other than 0; NaN is other than 0."""
    edits = graph.op("Greater", graph.op("Size", asked.edits.features), 0)
    length = graph.op("ReduceL1", asked.direction, keepdims=0)
    return graph.op("Or", edits, graph.op("Not", graph.op("Equal", length, 0.0)))


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
    values = graph.op("Slice", x, [0], [0], [2])
    return graph.cast(values, np.int64), values


def _active(steering: Steering) -> ir.Value:
    """Pre-activations [b, t, d_sae], with 0 where a threshold turns a feature off."""
    graph, bundle = steering.graph, steering.bundle
    z = pre_activations(graph, bundle, steering.x) if steering.z is None else steering.z
    threshold = bundle.manifest.architecture.selection == "threshold"
    return above(graph, z, weight(graph, bundle, "threshold")) if threshold else z


def _read(steering: Steering, slots: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Indices and values [b, t, w] of the active features, as encode.onnx gives them."""
    graph, architecture, f = steering.graph, steering.bundle.manifest.architecture, _active(steering)
    limit = architecture.k if architecture.k and architecture.selection == "groupmax" else architecture.d_sae
    batch = graph.op("Shape", steering.x, end=2)
    return selected_in_batch(graph, architecture, f, graph.op("Min", slots, [limit]), batch)


def _added(steering: Steering, asked: Intervention) -> ir.Value:
    """The sum delta @ W_dec[features] + holds * direction, [b, t, d_in]."""
    graph = steering.graph
    # Each condition weighs 1. NaN, of an unknown feature or in `above`, stays NaN and reaches y.
    weights = graph.op("Add", graph.op("Mul", asked.above, 0.0), 1.0)
    when, weights = known_features(graph, steering.bundle.manifest.architecture.d_sae, asked.when, weights)
    f = values_of(steering, when)
    failed = graph.op("LessOrEqual", f, graph.op("Unsqueeze", asked.above, [1]))
    # ReduceSum would not do: in onnxruntime before 1.32, its sum of no numbers is not 0 but empty.
    failures = graph.op("MatMul", graph.cast(failed, np.float32), graph.op("Unsqueeze", weights, [2]))
    holds = graph.op("Max", graph.op("Sub", 1.0, failures), 0.0)
    gated = dataclasses.replace(asked.edits, gate=graph.op("Mul", asked.edits.gate, holds))
    return graph.op("Add", change(steering, gated), graph.op("Mul", holds, asked.direction))


def _reconstruction(steering: Steering) -> ir.Value:
    """The reconstruction of x [b, t, d_in] from its active features."""
    graph, bundle = steering.graph, steering.bundle
    if bundle.manifest.architecture.selection == "threshold":
        total = graph.op("MatMul", _active(steering), weight(graph, bundle, "W_dec"))
        x_hat = graph.op("Add", total, weight(graph, bundle, "b_dec"))
    else:
        indices, values = _read(steering, graph.constant([bundle.manifest.architecture.k or 0], np.int64))
        x_hat = weighted_rows(graph, bundle, indices, values, axis=2)
    return completed(graph, bundle, x_hat, steering.x)
