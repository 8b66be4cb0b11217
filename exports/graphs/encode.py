"""encode.onnx: activations to sparse features, each token by itself."""

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.folder import WEIGHTS, Bundle
from sae_runtime.exports.graphs.external import external
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.normalise import normalised
from sae_runtime.exports.graphs.select import first_rows, selected_slots, tokens


def weight(graph: Graph, bundle: Bundle, name: str) -> ir.Value:
    """A weight of the bundle as a value of the graph."""
    return graph.weight(external(name, WEIGHTS, bundle.specs[name]))


def pre_activations(graph: Graph, bundle: Bundle, x: ir.Value) -> ir.Value:
    """The pre-activations relu((x' - b_pre) W_enc + b_enc) [..., d_sae] of x [..., d_in]; NaN stays NaN."""
    c = centred(graph, bundle, normalised(graph, bundle.manifest.architecture, x).x)
    product = graph.op("MatMul", c, weight(graph, bundle, "W_enc"))
    return graph.op("Relu", graph.op("Add", product, weight(graph, bundle, "b_enc")))


def centred(graph: Graph, bundle: Bundle, x: ir.Value) -> ir.Value:
    """x' - b_pre for x' [..., d_in] as `normalised` gives it."""
    return graph.op("Sub", x, weight(graph, bundle, "b_dec")) if bundle.manifest.architecture.pre_bias else x


def above(graph: Graph, z: ir.Value, threshold: ir.Value) -> ir.Value:
    """z where z > threshold, else 0; NaN stays NaN, so that the caller sees it.

    The graph multiplies, since onnxruntime's Where runs on one thread.
    """
    return graph.op("Mul", z, graph.cast(graph.op("Greater", z, threshold), np.float32))


def threshold_input(graph: Graph, bundle: Bundle) -> ir.Value | None:
    """The input threshold f32 [1] or [d_sae], where the bundle has a threshold."""
    if bundle.manifest.architecture.selection != "threshold":
        return None
    default = external("threshold", WEIGHTS, bundle.specs["threshold"])
    return graph.input("threshold", np.float32, ["threshold"], default)


def encode_graph(bundle: Bundle) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, slots], each row by falling value, unused slots 0.

    Optional inputs: slots i64 [1], and threshold f32 [1] or [d_sae] where the bundle has one.

    >>> from sae_runtime.bundle.folder import read
    >>> [value.name for value in encode_graph(read(bundle_path)).graph.outputs]
    ['indices', 'values']
    """
    graph = Graph("encode")
    x, n = tokens(graph, bundle.manifest.architecture.d_in)
    z = pre_activations(graph, bundle, x)
    threshold = threshold_input(graph, bundle)
    slots = graph.input("slots", np.int64, [1], default=[bundle.manifest.slots])
    z = z if threshold is None else above(graph, z, threshold)
    write_slots(graph, *selected_slots(graph, bundle.manifest.architecture, z, slots), n)
    return graph.model()


def write_slots(graph: Graph, indices: ir.Value, values: ir.Value, n: ir.Value) -> None:
    """Make the first n rows the outputs indices i64 and values f32 [n, slots]."""
    graph.output(first_rows(graph, indices, n), "indices", np.int64, ["n", "slots"])
    graph.output(first_rows(graph, values, n), "values", np.float32, ["n", "slots"])
