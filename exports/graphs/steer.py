"""steer.onnx: edit features of activations and keep everything else, the reconstruction error included.

In numpy, with activations f [b, t, e] of the edited features, scale, shift, low, high [b, e], gate [b, t, e], the rows
W_dec[features] [b, e, d_in], and size [b, t, 1], by which `normalised` divides the tokens:

    edited = np.clip(scale[:, None] * f + shift[:, None], low[:, None], high[:, None])
    delta = gate * (edited - f)
    y = x + size * (delta @ W_dec[features])
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.decode import known_features
from sae_runtime.exports.graphs.encode import above, centred, pre_activations, weight
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.normalise import normalised
from sae_runtime.exports.graphs.select import selected_in_batch

LARGEST = float(np.finfo(np.float32).max)
ROWS = "W_enc_rows"  # W_enc transposed, in derived.safetensors
Specs = Mapping[str, TensorSpec]


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


@dataclass(frozen=True)
class Steering:
    """What the parts of a steering graph share: the graph, the SAE, and activations x [b, t, d_in].

    Attributes:
        graph: the graph that grows.
        bundle: the SAE.
        x: the activations before the edits, f32.
        specs: the arrays of derived.safetensors. With `ROWS` among them, an edit reads one row for each feature; a
            column of W_enc is scattered over the whole file.
        z: the pre-activations of x, where the graph has them already; a threshold does not need them.
    """

    graph: Graph
    bundle: Bundle
    x: ir.Value
    specs: Specs
    z: ir.Value | None = None


def steer_graph(bundle: Bundle, specs: Specs | None = None) -> ir.Model:
    """x f32 [b, t, d_in] -> y f32 [b, t, d_in] = x + (gate * (f' - f)) W_dec[features].

    f' = clip(scale * f + shift, low, high). Optional inputs: `Edits`; the default is no edits.

    Args:
        bundle: the SAE.
        specs: the arrays of derived.safetensors.

    >>> from sae_runtime.bundle.folder import read
    >>> [value.name for value in steer_graph(read(bundle_path)).graph.inputs]
    ['x', 'features', 'scale', 'shift', 'low', 'high', 'gate']
    """
    graph = Graph("steer")
    d_in = bundle.manifest.architecture.d_in
    x = graph.input("x", np.float32, ["b", "t", d_in])
    y = graph.op("Add", x, change(Steering(graph, bundle, x, specs or {}), edit_inputs(graph)))
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


def change(steering: Steering, edits: Edits) -> ir.Value:
    """The change that edits make to x [b, t, d_in]: (gate * (f' - f)) W_dec[features], times each token's size.

    A feature that is out of range, or that two edits of a request change, gives NaN in its request only.
    """
    graph, architecture = steering.graph, steering.bundle.manifest.architecture
    features, shift = known_features(graph, architecture.d_sae, edits.features, _unless_twice(graph, edits))
    f = values_of(steering, features)
    scale, shift, low, high = (graph.op("Unsqueeze", v, [1]) for v in (edits.scale, shift, edits.low, edits.high))
    edited = graph.op("Add", graph.op("Mul", scale, f), shift)
    # Clip takes scalar bounds only. Max and Min keep NaN.
    edited = graph.op("Min", graph.op("Max", edited, low), high)
    delta = graph.op("Mul", edits.gate, graph.op("Sub", edited, f))
    added = graph.op("MatMul", delta, graph.op("Gather", weight(graph, steering.bundle, "W_dec"), features))
    size = normalised(graph, architecture, steering.x).size
    return added if size is None else graph.op("Mul", added, size)


def _unless_twice(graph: Graph, edits: Edits) -> ir.Value:
    """The shift [b, e], with NaN where another edit of the request has the same feature.

    Two edits of a feature would each change what the SAE found, and their changes would add up. An edit that changes
    nothing is padding and may repeat a feature.
    """

    def checked(branch: Graph) -> list[ir.Value]:
        scale, shift = branch.op("Equal", edits.scale, 1.0), branch.op("Equal", edits.shift, 0.0)
        low, high = branch.op("LessOrEqual", edits.low, -LARGEST), branch.op("GreaterOrEqual", edits.high, LARGEST)
        idle = branch.op("And", branch.op("And", scale, shift), branch.op("And", low, high))
        ids = branch.op("Where", idle, np.nan, branch.cast(edits.features, np.float32))  # NaN does not equal itself
        same = branch.op("Equal", branch.op("Unsqueeze", ids, [2]), branch.op("Unsqueeze", ids, [1]))
        edits_of_it = branch.op("ReduceSum", branch.cast(same, np.float32), [2], keepdims=0)
        return [branch.op("Where", branch.op("Greater", edits_of_it, 1.0), np.nan, edits.shift)]

    ids, size = edits.features, graph.op("Size", edits.features)
    same = graph.op("Equal", graph.op("Unsqueeze", ids, [2]), graph.op("Unsqueeze", ids, [1]))
    # Each id equals itself. The branch runs only where more are equal, since its nodes take a while.
    repeated = graph.op("Greater", graph.op("Shape", graph.op("NonZero", same), start=1), size)
    return graph.either("twice", repeated, checked, lambda branch: [branch.op("Identity", edits.shift)])[0]


def values_of(steering: Steering, features: ir.Value) -> ir.Value:
    """Activations [b, t, e] of the features [b or 1, e], all in range, by the served rule."""
    selection = steering.bundle.manifest.architecture.selection
    return (_threshold_values if selection == "threshold" else _topk_values)(steering, features)


def _threshold_values(steering: Steering, features: ir.Value) -> ir.Value:
    """Activations by a threshold; the graph reads the parts of the encoder that belong to these features only."""
    graph, bundle = steering.graph, steering.bundle
    if ROWS in steering.specs:
        rows = graph.op("Gather", graph.derived(ROWS, steering.specs), features)
        columns = graph.op("Transpose", rows, perm=[0, 2, 1])
    else:
        columns = graph.op("Gather", weight(graph, bundle, "W_enc"), features, axis=1)
        columns = graph.op("Transpose", columns, perm=[1, 0, 2])
    asked = graph.op("Unsqueeze", features, [1])
    bias, threshold = (graph.op("Gather", weight(graph, bundle, name), asked) for name in ("b_enc", "threshold"))
    c = centred(graph, bundle, normalised(graph, bundle.manifest.architecture, steering.x).x)
    # There is no Relu, since a threshold is never below 0.
    return above(graph, graph.op("Add", graph.op("MatMul", c, columns), bias), threshold)


def _topk_values(steering: Steering, features: ir.Value) -> ir.Value:
    """Activations by top k or by the largest of groups; these need the whole encoder, which runs where e > 0."""
    graph, architecture = steering.graph, steering.bundle.manifest.architecture
    asked = graph.op("Shape", features, start=1)
    z = steering.z
    if z is None:
        z = pre_activations(graph, steering.bundle, some_tokens(graph, steering.x, asked))
    k = graph.constant([architecture.k or 0], np.int64)
    indices, values = selected_in_batch(graph, architecture, z, k, graph.op("Shape", z, end=2))
    same = graph.op("Equal", graph.op("Unsqueeze", indices, [2]), graph.op("Unsqueeze", features, [1, 3]))
    values = graph.op("Unsqueeze", values, [2])
    # 0 times Inf is NaN: which features are the largest is not known for a token with a feature that is not finite.
    kept = graph.op("Where", same, values, graph.op("Mul", values, 0.0))
    f = graph.op("ReduceSum", kept, [-1], keepdims=0)
    shape = graph.op("Concat", graph.op("Shape", steering.x, end=2), asked, axis=0)
    return graph.op("Reshape", f, shape, allowzero=1)  # without features, f has no tokens yet


def some_tokens(graph: Graph, x: ir.Value, wanted: ir.Value) -> ir.Value:
    """x [b, t, d_in] where wanted, i64 [1], is above 0; else no token, [b, 0, d_in], so that later work is free."""
    tokens = graph.op("Mul", graph.op("Shape", x, start=1, end=2), graph.op("Min", wanted, [1]))
    return graph.op("Slice", x, [0], tokens, [1])
