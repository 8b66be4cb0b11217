"""`sae_runtime.bundle.normalise` in a graph, and the way back from x' to x."""

from dataclasses import dataclass

import onnx_ir as ir

from sae_runtime.bundle.manifest import Architecture
from sae_runtime.bundle.normalise import LAYER_EPSILON, TINY
from sae_runtime.exports.graphs.graph import Graph


@dataclass(frozen=True)
class Normalised:
    """x' [..., d_in], and each token's mean and size [..., 1]; None means a mean of 0 or a size of 1."""

    x: ir.Value
    mean: ir.Value | None
    size: ir.Value | None


def normalised(graph: Graph, architecture: Architecture, x: ir.Value) -> Normalised:
    """The encoder's input x' for activations x [..., d_in], with each token's mean and size for `restored`."""
    if architecture.norm == "none":
        return Normalised(x, None, None)
    unit = graph.op("ReduceL1", graph.op("Mul", x, 1 / architecture.d_in), [-1])
    y = graph.op("Div", x, graph.op("Where", graph.op("Greater", unit, 0.0), unit, 1.0))
    if architecture.norm == "length":
        size = graph.op("Mul", graph.op("ReduceL2", y, [-1]), architecture.d_in**-0.5)
        return Normalised(graph.op("Div", y, graph.op("Max", size, TINY)), None, graph.op("Mul", size, unit))
    mean = graph.op("ReduceMean", y, [-1])
    y = graph.op("Sub", y, mean)
    size = graph.op("Mul", graph.op("ReduceL2", y, [-1]), (architecture.d_in - 1) ** -0.5)
    epsilon = graph.op("Div", LAYER_EPSILON, graph.op("Max", unit, TINY))
    y = graph.op("Div", y, graph.op("Add", size, epsilon))
    return Normalised(y, graph.op("Mul", mean, unit), graph.op("Mul", size, unit))


def restored(graph: Graph, x_hat: ir.Value, token: Normalised) -> ir.Value:
    """The reconstruction of x from `x_hat` [..., d_in], the reconstruction of x'."""
    if token.size is not None:
        x_hat = graph.op("Mul", x_hat, token.size)
    return x_hat if token.mean is None else graph.op("Add", x_hat, token.mean)
