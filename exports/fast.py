"""encode_fast.onnx and encode_half.onnx: the features of encode.onnx, roughly, for less."""

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports.derived import Derived
from sae_runtime.exports.encode import latents, selected, threshold_input, write_slots
from sae_runtime.exports.graph import Graph, external
from sae_runtime.exports.integers import LEVELS, product
from sae_runtime.exports.normalise import normalised
from sae_runtime.exports.select import tokens


def fast_graph(bundle: Bundle, derived: Derived) -> ir.Model:
    """The signature of encode.onnx and the input levels f32 []: latents from the int8 product alone (integers.py)."""
    graph = Graph("encode_fast")
    encoder = bundle.manifest.encoder
    assert derived.plan is not None
    x, n = tokens(graph, encoder.d_in)
    theta = threshold_input(graph, bundle)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width])
    levels = graph.input("levels", np.float32, [], default=LEVELS)

    def stored(name: str) -> ir.Value:
        return graph.weight(external(name, DERIVED, derived.specs[name]))

    x = normalised(graph, encoder, x).x
    p, scale, _ = product(graph, x, levels, stored, derived.plan, bounded=False)
    if theta is None:  # a token's scale does not change the order of its features: it is for those that are kept
        indices, p = selected(graph, bundle, p, theta, width)
        slots = indices, graph.op("Relu", graph.op("Mul", p, scale))
    else:  # what lies above a threshold is positive
        slots = selected(graph, bundle, graph.op("Mul", p, scale), theta, width)
    write_slots(graph, *slots, n)
    return graph.model()


def half_graph(bundle: Bundle, derived: Derived) -> ir.Model:
    """The signature of encode.onnx, with W_enc stored in float16 and computed with in float32."""
    graph = Graph("encode_half")
    x, n = tokens(graph, bundle.manifest.encoder.d_in)
    theta = threshold_input(graph, bundle)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width])
    half = graph.weight(external("W_enc_half", DERIVED, derived.specs["W_enc_half"]))
    z = latents(graph, bundle, x, graph.cast(half, np.float32))
    write_slots(graph, *selected(graph, bundle, z, theta, width), n)
    return graph.model()
