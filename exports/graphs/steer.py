"""steer.onnx: edit features of activations and keep everything else, the reconstruction error included.

`steer_in_numpy` is the formula.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.folder import DERIVED, Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.decode import known_features
from sae_runtime.exports.graphs.encode import above, centred, pre_activations, weight
from sae_runtime.exports.graphs.graph import Graph, external
from sae_runtime.exports.graphs.normalise import normalised
from sae_runtime.exports.graphs.select import first_rows, not_empty, selected_slots

LARGEST = float(np.finfo(np.float32).max)
Numbers = NDArray[np.floating]


def steer_in_numpy(x: Numbers, f: Numbers, rows: Numbers, size: Numbers, **edits: Numbers) -> Numbers:
    """What `steer_graph` computes, for activations f [b, t, e] of the edited features before the edits.

    x is [b, t, d_in], `rows` of W_dec are [b, e, d_in], and size [b, t, 1] is what `normalised` divides tokens by.
    The edits are scale, shift, low and high [b, e], and gate [b, t, e].
    """
    scale, shift, low, high = (edits[name][:, None] for name in ("scale", "shift", "low", "high"))
    edited = np.minimum(np.maximum(scale * f + shift, low), high)
    delta = edits["gate"] * (edited - f)
    return np.asarray(x + size * (delta @ rows))


@dataclass(frozen=True)
class Edits:
    """The edits as values of a graph: features i64 and scale, shift, low, high f32, all [b or 1, e], and gate f32.

    gate is broadcastable to [b, t, e].
    """

    features: ir.Value
    scale: ir.Value
    shift: ir.Value
    low: ir.Value
    high: ir.Value
    gate: ir.Value


def steer_graph(bundle: Bundle, rows: TensorSpec | None = None) -> ir.Model:
    """x f32 [b, t, d_in] -> y f32 [b, t, d_in] = x + (gate * (f' - f)) W_dec[features].

    f' = clip(scale * f + shift, low, high). Optional inputs: `Edits`; the default is no edits.

    Args:
        bundle: the SAE.
        rows: where `derived.safetensors` holds W_enc transposed, if it does. An edit then reads one row of it; a column
            of W_enc is scattered over the whole file.
    """
    graph = Graph("steer")
    d_in = bundle.manifest.architecture.d_in
    x = graph.input("x", np.float32, ["b", "t", d_in])
    y = graph.op("Add", x, change(graph, bundle, x, edit_inputs(graph), rows))
    graph.output(y, "y", np.float32, ["b", "t", d_in])
    return graph.model()


def edit_inputs(graph: Graph) -> Edits:
    """The inputs by which a caller edits; by default there are no edits."""
    features = graph.input("features", np.int64, ["eb", "e"], default=np.empty((1, 0)))
    scale, shift, low, high = (
        graph.input(name, np.float32, [f"{name}_b", f"{name}_e"], default=[[default]])
        for name, default in (("scale", 1.0), ("shift", 0.0), ("low", -LARGEST), ("high", LARGEST))
    )
    gate = graph.input("gate", np.float32, ["gate_b", "gate_t", "gate_e"], default=[[[1.0]]])
    return Edits(features, scale, shift, low, high, gate)


def change(
    graph: Graph,
    bundle: Bundle,
    x: ir.Value,
    edits: Edits,
    rows: TensorSpec | None = None,
    z: ir.Value | None = None,
) -> ir.Value:
    """The change that edits make to x [b, t, d_in]: (gate * (f' - f)) W_dec[features], times each token's size.

    A feature out of range gives NaN for its request alone.

    Args:
        graph: the graph that grows.
        bundle: the SAE.
        x: the activations.
        edits: the edits.
        rows: as in `steer_graph`.
        z: the pre-activations of x, where the graph has them already; only top k needs them.
    """
    features, shift = known_features(graph, bundle.manifest.architecture.d_sae, edits.features, edits.shift)
    f = values_of(graph, bundle, x, features, rows, z)
    per_token = graph.constant([1], np.int64)
    scale, shift, low, high = (
        graph.op("Unsqueeze", value, per_token) for value in (edits.scale, shift, edits.low, edits.high)
    )
    edited = graph.op("Add", graph.op("Mul", scale, f), shift)
    # Clip takes scalar bounds only. Max and Min keep NaN.
    edited = graph.op("Min", graph.op("Max", edited, low), high)
    delta = graph.op("Mul", edits.gate, graph.op("Sub", edited, f))
    added = graph.op("MatMul", delta, graph.op("Gather", weight(graph, bundle, "W_dec"), features))
    size = normalised(graph, bundle.manifest.architecture, x).size
    return added if size is None else graph.op("Mul", added, size)


def values_of(
    graph: Graph,
    bundle: Bundle,
    x: ir.Value,
    features: ir.Value,
    rows: TensorSpec | None = None,
    z: ir.Value | None = None,
) -> ir.Value:
    """Values [b, t, e] of the features [b or 1, e], all in range, by the served rule; arguments as in `change`."""
    if bundle.manifest.architecture.selection == "threshold":
        return _threshold_values(graph, bundle, x, features, rows)
    return _topk_values(graph, bundle, x, features, z)


def _threshold_values(
    graph: Graph, bundle: Bundle, x: ir.Value, features: ir.Value, rows: TensorSpec | None
) -> ir.Value:
    """Values by a threshold; of the encoder, only the parts of these features are read."""
    if rows is None:
        columns = graph.op("Gather", weight(graph, bundle, "W_enc"), features, axis=1)
        columns = graph.op("Transpose", columns, perm=[1, 0, 2])
    else:
        rows_of_w = graph.weight(external("W_enc_rows", DERIVED, rows))
        columns = graph.op("Transpose", graph.op("Gather", rows_of_w, features), perm=[0, 2, 1])
    asked = graph.op("Unsqueeze", features, graph.constant([1], np.int64))
    bias, threshold = (graph.op("Gather", weight(graph, bundle, name), asked) for name in ("b_enc", "threshold"))
    c = centred(graph, bundle, normalised(graph, bundle.manifest.architecture, x).x)
    # There is no Relu, since a threshold is never below 0.
    return above(graph, graph.op("Add", graph.op("MatMul", c, columns), bias), threshold)


def _topk_values(graph: Graph, bundle: Bundle, x: ir.Value, features: ir.Value, z: ir.Value | None) -> ir.Value:
    """Values by top k or by the largest of groups, which only the whole encoder can tell; it runs where e > 0."""
    asked = graph.op("Shape", features, start=1)
    if z is None:
        z = pre_activations(graph, bundle, some_tokens(graph, x, asked))
    architecture, d_sae = bundle.manifest.architecture, bundle.manifest.architecture.d_sae
    k = graph.constant([architecture.k or 0], np.int64)
    rows, n = not_empty(graph, graph.op("Reshape", z, graph.constant([-1, d_sae], np.int64), allowzero=1), d_sae)
    kept_shape = graph.op("Concat", graph.op("Shape", z, end=2), k, axis=0)
    indices, values = (
        graph.op("Reshape", first_rows(graph, part, n), kept_shape, allowzero=1)
        for part in selected_slots(graph, architecture, rows, k)
    )
    slot, request = graph.constant([2], np.int64), graph.constant([1, 3], np.int64)
    same = graph.op("Equal", graph.op("Unsqueeze", indices, slot), graph.op("Unsqueeze", features, request))
    kept = graph.op("Where", same, graph.op("Unsqueeze", values, slot), graph.constant(0, np.float32))
    f = graph.op("ReduceSum", kept, graph.constant([-1], np.int64), keepdims=0)
    shape = graph.op("Concat", graph.op("Shape", x, end=2), asked, axis=0)
    return graph.op("Reshape", f, shape, allowzero=1)  # without features, f has no tokens yet


def some_tokens(graph: Graph, x: ir.Value, wanted: ir.Value) -> ir.Value:
    """x [b, t, d_in] where wanted, i64 [1], is above 0; else no token, [b, 0, d_in], so that later work is free."""
    one = graph.constant([1], np.int64)
    tokens = graph.op("Mul", graph.op("Shape", x, start=1, end=2), graph.op("Min", wanted, one))
    return graph.op("Slice", x, graph.constant([0], np.int64), tokens, one)
