"""`sae_runtime.bundle.normalise` in a graph, and the way back from x' to x."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sae_runtime.bundle.manifest import Architecture
from sae_runtime.bundle.normalise import LAYER_EPSILON, TINY
from sae_runtime.exports.graphs.graph import Graph


@dataclass(frozen=True)
class Normalised:
    """x' [..., d_in], and each token's mean and size [..., 1]; None stands for a mean of 0 and a size of 1."""

    x: ir.Value
    mean: ir.Value | None
    size: ir.Value | None


def normalised(graph: Graph, architecture: Architecture, x: ir.Value) -> Normalised:
    """x [..., d_in] as the encoder takes it."""
    if architecture.norm == "none":
        return Normalised(x, None, None)
    last, tiny = graph.constant([-1], np.int64), graph.constant(TINY, np.float32)
    unit = graph.op("ReduceL1", graph.op("Mul", x, graph.constant(1 / architecture.d_in, np.float32)), last)
    nonzero = graph.op("Greater", unit, graph.constant(0, np.float32))
    y = graph.op("Div", x, graph.op("Where", nonzero, unit, graph.constant(1, np.float32)))
    if architecture.norm == "length":
        size = graph.op("Mul", graph.op("ReduceL2", y, last), graph.constant(architecture.d_in**-0.5, np.float32))
        return Normalised(graph.op("Div", y, graph.op("Max", size, tiny)), None, graph.op("Mul", size, unit))
    mean = graph.op("ReduceMean", y, last)
    y = graph.op("Sub", y, mean)
    size = graph.op("Mul", graph.op("ReduceL2", y, last), graph.constant((architecture.d_in - 1) ** -0.5, np.float32))
    epsilon = graph.op("Div", graph.constant(LAYER_EPSILON, np.float32), graph.op("Max", unit, tiny))
    y = graph.op("Div", y, graph.op("Add", size, epsilon))
    return Normalised(y, graph.op("Mul", mean, unit), graph.op("Mul", size, unit))


def restored(graph: Graph, x_hat: ir.Value, of: Normalised) -> ir.Value:
    """A reconstruction of x, from the one of x'."""
    if of.size is not None:
        x_hat = graph.op("Mul", x_hat, of.size)
    return x_hat if of.mean is None else graph.op("Add", x_hat, of.mean)
