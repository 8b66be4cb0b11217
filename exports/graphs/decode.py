"""decode.onnx: sparse features back to activations."""

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.folder import Bundle
from sae_runtime.exports.graphs.encode import weight
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.normalise import normalised, restored


def known_features(graph: Graph, d_sae: int, features: ir.Value, number: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Feature ids that Gather accepts, and `number` of the same shape with NaN where the id was out of range.

    A bad id must fail its own request only. Gather would fail the whole batch, or count from the end.
    """
    safe = graph.op("Clip", features, 0, d_sae - 1)
    return safe, graph.op("Where", graph.op("Equal", safe, features), number, np.nan)


def decode_graph(bundle: Bundle) -> ir.Model:
    """indices i64, values f32 [n, w] -> x_hat f32 [n, d_out] = sum_j values_j W_dec[indices_j] + b_dec.

    Where the SAE normalises or has a skip, x f32 [n, d_in] is an input too; see `manifest.Architecture`.

    >>> from sae_runtime.bundle.folder import read
    >>> [value.name for value in decode_graph(read(bundle_path)).graph.inputs]
    ['indices', 'values']
    """
    graph = Graph("decode")
    architecture = bundle.manifest.architecture
    indices = graph.input("indices", np.int64, ["n", "w"])
    values = graph.input("values", np.float32, ["n", "w"])
    indices, values = known_features(graph, architecture.d_sae, indices, values)
    x_hat = weighted_rows(graph, bundle, indices, values, axis=1)
    if architecture.decodes_with_x:
        x = graph.input("x", np.float32, ["n", architecture.d_in])
        x_hat = completed(graph, bundle, x_hat, x)
    graph.output(x_hat, "x_hat", np.float32, ["n", architecture.d_x_hat])
    return graph.model()


def weighted_rows(graph: Graph, bundle: Bundle, indices: ir.Value, values: ir.Value, axis: int) -> ir.Value:
    """f W_dec + b_dec [..., d_out] for indices and values [..., w] of features, w being the given axis."""
    rows = graph.op("Gather", weight(graph, bundle, "W_dec"), indices)
    total = graph.op("Squeeze", graph.op("MatMul", graph.op("Unsqueeze", values, [axis]), rows), [axis])
    return graph.op("Add", total, weight(graph, bundle, "b_dec"))


def completed(graph: Graph, bundle: Bundle, x_hat: ir.Value, x: ir.Value) -> ir.Value:
    """A reconstruction f W_dec + b_dec [..., d_out] with what x [..., d_in] adds to it: size, mean and skip."""
    architecture = bundle.manifest.architecture
    x_hat = restored(graph, x_hat, normalised(graph, architecture, x))
    if not architecture.skip:
        return x_hat
    skip = graph.op("Transpose", weight(graph, bundle, "W_skip"), perm=[1, 0])
    return graph.op("Add", x_hat, graph.op("MatMul", x, skip))
