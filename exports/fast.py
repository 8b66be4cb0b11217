"""encode_fast.onnx and encode_half.onnx: the features of encode.onnx, roughly, for less."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports.approximation import approximate, leading
from sae_runtime.exports.encode import above, latents, selected, threshold_input, write_slots
from sae_runtime.exports.graph import Graph, external
from sae_runtime.exports.integers import LEVELS, rounded
from sae_runtime.exports.normalise import normalised
from sae_runtime.exports.select import taken, tokens
from sae_runtime.tensors import TensorSpec


def fast_graph(bundle: Bundle, specs: Mapping[str, TensorSpec]) -> ir.Model:
    """The signature of encode.onnx and the input levels f32 []: latents from the int8 product alone (integers.py).

    Looked at are those that exceed their thresholds most, a quarter more than slots.
    """
    graph = Graph("encode_fast")
    encoder = bundle.manifest.encoder
    x, n = tokens(graph, encoder.d_in)
    theta = threshold_input(graph, bundle)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width])
    levels = graph.input("levels", np.float32, [], default=LEVELS)

    def stored(name: str) -> ir.Value:
        return graph.weight(external(name, DERIVED, specs[name]))

    small = rounded(graph, normalised(graph, encoder, x).x, levels, stored)
    all_of = approximate(graph, bundle, small, levels, stored, theta)
    d_sae = graph.constant([encoder.d_sae], np.int64)
    some = graph.op("Add", width, graph.op("Div", width, graph.constant(4, np.int64)))
    some = graph.op("Min", graph.op("Add", some, graph.constant([1], np.int64)), d_sae)
    features, over, _ = leading(graph, all_of, stored, some)
    values = graph.op("Mul", over, small.scale)
    if theta is None or all_of.theta is None:
        values = graph.op("Relu", values)
    else:
        theta, less = (taken(graph, graph.op("Expand", t, d_sae), features) for t in (theta, all_of.theta))
        values = above(graph, graph.op("Relu", graph.op("Add", values, less)), theta)
    values, at = graph.ops("TopK", 2, values, graph.op("Min", width, d_sae))
    write_slots(graph, graph.op("GatherElements", features, at, axis=1), values, n)
    return graph.model()


def half_graph(bundle: Bundle, specs: Mapping[str, TensorSpec]) -> ir.Model:
    """The signature of encode.onnx, with W_enc stored in float16 and computed with in float32."""
    graph = Graph("encode_half")
    x, n = tokens(graph, bundle.manifest.encoder.d_in)
    theta = threshold_input(graph, bundle)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width])
    half = graph.weight(external("W_enc_half", DERIVED, specs["W_enc_half"]))
    z = latents(graph, bundle, x, graph.cast(half, np.float32))
    write_slots(graph, *selected(graph, bundle, z, theta, width), n)
    return graph.model()
