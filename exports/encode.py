"""encode.onnx: activations to sparse features, every token for itself."""

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle import WEIGHTS, Bundle
from sae_runtime.exports.graph import Graph, external


def weight(graph: Graph, bundle: Bundle, name: str) -> ir.Value:
    """A weight of the bundle as a value of the graph."""
    return graph.weight(external(name, WEIGHTS, bundle.specs[name]))


def latents(graph: Graph, bundle: Bundle, x: ir.Value) -> ir.Value:
    """relu((x - b_dec) W_enc + b_enc) for x [..., d_in]: [..., d_sae]; NaN stays NaN."""
    centred = graph.op("Sub", x, weight(graph, bundle, "b_dec"))
    product = graph.op("MatMul", centred, weight(graph, bundle, "W_enc"))
    return graph.op("Relu", graph.op("Add", product, weight(graph, bundle, "b_enc")))


def above(graph: Graph, z: ir.Value, theta: ir.Value) -> ir.Value:
    """z where z > theta, else 0; asked the other way round, so that NaN passes and is seen by the caller."""
    return graph.op("Where", graph.op("LessOrEqual", z, theta), graph.constant(0, np.float32), z)


def encode_graph(bundle: Bundle) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, width], each row by falling value, unused slots 0.

    Optional inputs: width i64 [1], and for threshold bundles theta f32 [1] or [d_sae].
    """
    graph = Graph("encode")
    encoder = bundle.manifest.encoder
    z = latents(graph, bundle, graph.input("x", np.float32, ["n", encoder.d_in]))
    if encoder.selection == "threshold":
        theta = graph.input(
            "theta", np.float32, ["theta"], default=external("theta", WEIGHTS, bundle.specs["threshold"])
        )
        z = above(graph, z, theta)
    width = graph.input("width", np.int64, [1], default=[bundle.manifest.width])
    slots = graph.op("Min", width, graph.constant([encoder.d_sae], np.int64))
    values, indices = graph.ops("TopK", 2, z, slots)
    graph.output(indices, "indices", np.int64, ["n", "width"])
    graph.output(values, "values", np.float32, ["n", "width"])
    return graph.model()
