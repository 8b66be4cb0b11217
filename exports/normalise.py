"""The same as `sae_runtime.normalise`, in a graph, and the way back."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sae_runtime.exports.graph import Graph
from sae_runtime.manifest import Encoder
from sae_runtime.normalise import LAYER_EPSILON, SMALLEST_SIZE


@dataclass(frozen=True)
class Normalised:
    """x' [..., d_in], and of each token its mean and size [..., 1]; None where they are 0 and 1."""

    x: ir.Value
    mean: ir.Value | None
    size: ir.Value | None


def normalised(graph: Graph, encoder: Encoder, x: ir.Value) -> Normalised:
    """x [..., d_in] as the encoder takes it."""
    last = graph.constant([-1], np.int64)
    if encoder.norm == "none":
        return Normalised(x, None, None)
    if encoder.norm == "length":
        size = graph.op("ReduceL2", x, last)
        size = graph.op("Mul", size, graph.constant(encoder.d_in**-0.5, np.float32))
        return Normalised(
            graph.op("Div", x, graph.op("Max", size, graph.constant(SMALLEST_SIZE, np.float32))), None, size
        )
    mean = graph.op("ReduceMean", x, last)
    centred = graph.op("Sub", x, mean)
    variance = graph.op("ReduceSumSquare", centred, last)
    size = graph.op("Sqrt", graph.op("Mul", variance, graph.constant(1 / (encoder.d_in - 1), np.float32)))
    return Normalised(
        graph.op("Div", centred, graph.op("Add", size, graph.constant(LAYER_EPSILON, np.float32))), mean, size
    )


def restored(graph: Graph, x_hat: ir.Value, of: Normalised) -> ir.Value:
    """A reconstruction of x' as one of x."""
    if of.size is not None:
        x_hat = graph.op("Mul", x_hat, of.size)
    return x_hat if of.mean is None else graph.op("Add", x_hat, of.mean)
