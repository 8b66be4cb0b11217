"""steer.onnx: edit features of activations and keep everything else, the reconstruction error included."""

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import Bundle
from sae_runtime.exports.decode import known_features
from sae_runtime.exports.encode import above, latents, weight
from sae_runtime.exports.graph import Graph

LARGEST = float(np.finfo(np.float32).max)


def steer_graph(bundle: Bundle) -> ir.Model:
    """x f32 [b, t, d_in] -> y f32 [b, t, d_in] = x + (gate * (f' - f)) W_dec[features].

    f' = clip(scale * f + shift, low, high). Optional inputs: features i64 and scale, shift, low, high f32, all
    [b or 1, e], and gate f32, broadcastable to [b, t, e]; the default is no edits.
    """
    graph = Graph("steer")
    encoder = bundle.manifest.encoder
    x = graph.input("x", np.float32, ["b", "t", encoder.d_in])
    features = graph.input("features", np.int64, ["eb", "e"], default=np.empty((1, 0)))
    scale, shift, low, high = (
        graph.input(name, np.float32, [f"{name}_b", f"{name}_e"], default=[[default]])
        for name, default in (("scale", 1.0), ("shift", 0.0), ("low", -LARGEST), ("high", LARGEST))
    )
    gate = graph.input("gate", np.float32, ["gate_b", "gate_t", "gate_e"], default=[[[1.0]]])

    features, shift = known_features(graph, encoder.d_sae, features, shift)
    f = (_topk_features if encoder.selection == "topk" else _threshold_features)(graph, bundle, x, features)
    per_token = graph.constant([1], np.int64)
    scale, shift, low, high = (graph.op("Unsqueeze", value, per_token) for value in (scale, shift, low, high))
    edited = graph.op("Add", graph.op("Mul", scale, f), shift)
    # Not Clip, which takes scalar bounds only; Max and Min keep NaN.
    edited = graph.op("Min", graph.op("Max", edited, low), high)
    delta = graph.op("Mul", gate, graph.op("Sub", edited, f))
    directions = graph.op("Gather", weight(graph, bundle, "W_dec"), features)
    y = graph.op("Add", x, graph.op("MatMul", delta, directions))
    graph.output(y, "y", np.float32, ["b", "t", encoder.d_in])
    return graph.model()


def _threshold_features(graph: Graph, bundle: Bundle, x: ir.Value, features: ir.Value) -> ir.Value:
    """Values of the named features [b, t, e]; reads their columns of the encoder only."""
    per_token = graph.constant([1], np.int64)
    columns = graph.op("Gather", weight(graph, bundle, "W_enc"), features, axis=1)
    columns = graph.op("Transpose", columns, perm=[1, 0, 2])
    bias, theta = (
        graph.op("Unsqueeze", graph.op("Gather", weight(graph, bundle, name), features), per_token)
        for name in ("b_enc", "threshold")
    )
    centred = graph.op("Sub", x, weight(graph, bundle, "b_dec"))
    z = graph.op("Relu", graph.op("Add", graph.op("MatMul", centred, columns), bias))
    return above(graph, z, theta)


def _topk_features(graph: Graph, bundle: Bundle, x: ir.Value, features: ir.Value) -> ir.Value:
    """The same for token choice, where only the whole encoder tells which features are among the top k."""
    k = graph.constant([bundle.manifest.encoder.k or 0], np.int64)
    values, indices = graph.ops("TopK", 2, latents(graph, bundle, x), k)
    last, asked = graph.constant([-1], np.int64), graph.constant([1, 3], np.int64)
    same = graph.op(
        "Equal", graph.op("Unsqueeze", indices, graph.constant([2], np.int64)), graph.op("Unsqueeze", features, asked)
    )
    kept = graph.op(
        "Where", same, graph.op("Unsqueeze", values, graph.constant([2], np.int64)), graph.constant(0, np.float32)
    )
    return graph.op("ReduceSum", kept, last, keepdims=0)
