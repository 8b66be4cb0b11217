"""The encoder in int8, and a bound on the error of int8.

Equations (1) to (7) of docs/reference/certified-encoding.md derive the bound and name every quantity here. The bound
holds for all activations. It is tight for activations like the sample, from which the map and the centre are made.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.graphs import GROUP
from sae_runtime.exports.graphs.graph import Graph

# Levels of an activation on either side of 0. On a processor without VNNI, a sum of two products u8 x s8 must fit 16
# bits. It does, since activations are stored as 1 to 127: 2 * 127 * 127 < 2^15. The zero point is levels + 1; from int8
# activations, onnxruntime would make uint8 by adding 128.
LEVELS = 63
_WEIGHT_LEVELS = 127
_ROUNDING = 2.0**-24  # of a float32 number, as a share of it
_SLACK = 2.0**-20  # more than a few float32 operations lose
_TINY = 1e-37  # float32 may round smaller numbers to 0

Arrays = dict[str, NDArray[np.generic]]
Stored = Callable[[str], ir.Value]  # gives an array of `quantise` as a value of a graph
Float64 = NDArray[np.float64]


class Rounded(NamedTuple):
    """Activations in int8, equation (2): x' - centre [n, d_in], v / s and q [n, channels], and s [n, 1]."""

    c: ir.Value
    v: ir.Value
    q: ir.Value
    scale: ir.Value


def quantise(weights: Mapping[str, NDArray[np.float32]], x: NDArray[np.float32], rng: np.random.Generator) -> Arrays:
    """The encoder of `weights` in int8, most precise on activations like x, as arrays of derived.safetensors.

    Features are in the order of `int8_order`, in groups of 16. Bounds and biases are rounded up by what float32 may
    lose. The method is our design; docs/reference/certified-encoding.md derives it.

    Args:
        weights: of `Bundle.weights`; d_sae is a multiple of 16.
        x: typical activations [m, d_in], normalised.
        rng: draws the random rotation of the map.

    Returns:
        int8_centre: f32 [d_in], the origin of c = x' - centre.
        int8_map: f32 [d_in, channels], M of equation (1) transposed; channels are d_in rounded up to a multiple of 4.
        int8_rounding: f32 [1]; v in float32 is wrong by at most this number times |c|.
        int8_direct: f32 [1]; `int8_bound` covers the float32 rounding of p_j where |q| >= int8_direct |x' - b_pre| / s.
        int8_order: i64 [d_sae], the feature at each place.
        int8_weights: i8 [channels, d_sae], Q_j of equation (2).
        int8_scale: f32 [d_sae], s_j of equation (2).
        int8_bias: f32 [groups, 16], a_j of equation (1).
        int8_bound: f32 [2, groups], the largest |w_j| and the largest loss (equation (5)) of a group.
        int8_share: f32 [groups, 16], the share of its group's bound that a feature needs.

    >>> weights = {"W_enc": np.eye(16, dtype=np.float32), "b_enc": np.zeros(16), "b_pre": np.zeros(16)}
    >>> quantise(weights, weights["W_enc"], np.random.default_rng(0))["int8_weights"].dtype
    dtype('int8')
    """
    w = weights["W_enc"].astype(np.float64)
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    c = x.astype(np.float64) - centre
    mapping = _mapping(c, w, rng)
    bias = weights["b_enc"] + (centre.astype(np.float64) - weights["b_pre"]) @ w
    w = np.asarray(np.linalg.solve(mapping.T.astype(np.float64), w), np.float64)
    scale = (np.maximum(np.abs(w).max(axis=0), 1e-30) / _WEIGHT_LEVELS).astype(np.float32)
    integers = np.rint(w / scale)
    v = c @ mapping.T.astype(np.float64)
    direct = _direct(x - weights["b_pre"], v)
    bound = _bound(weights["W_enc"], w, integers * scale, direct)

    threshold = weights["threshold"].astype(np.float64) if "threshold" in weights else 0.0
    order = _order(bias - threshold, _typical_lengths(v) @ bound)
    bias = bias + (np.abs(bias) + np.abs(weights["b_enc"])) * _SLACK + _TINY
    by_group = bound[:, order].reshape(2, -1, GROUP)
    largest = by_group.max(axis=2)
    share = (by_group / largest[:, :, None]).max(axis=0)
    d_in, fill = len(centre), -len(centre) % 4
    # Equation (6): every sum on the way to v is at most |M| |c|.
    rounding = float(np.linalg.norm(mapping, 2)) * (d_in + math.sqrt(d_in) + 8) * _ROUNDING
    return {
        "int8_centre": centre,
        "int8_map": np.pad(mapping.T, ((0, 0), (0, fill))),
        "int8_rounding": np.array([rounding], np.float32),
        "int8_direct": np.array([1 / direct], np.float32),
        "int8_order": order,
        "int8_weights": np.pad(integers[:, order], ((0, fill), (0, 0))).astype(np.int8),
        "int8_scale": scale[order],
        "int8_bias": bias[order].reshape(-1, GROUP).astype(np.float32),
        "int8_bound": (largest * (1 + _SLACK)).astype(np.float32),
        "int8_share": (share * (1 + _SLACK)).astype(np.float32),
    }


def _mapping(c: Float64, w: Float64, rng: np.random.Generator) -> NDArray[np.float32]:
    """M [channels, d_in] of equation (4), after a random rotation, scaled so that v is typically at most 1."""
    d_in, d_sae = w.shape
    rotation = np.linalg.qr(rng.standard_normal((d_in, d_in)))[0]
    mapping = rotation @ _transport(c.T @ c / max(len(c), 1), w @ w.T / d_sae)
    typical = float(np.median(np.abs(c @ mapping.T).max(axis=1)))
    return np.asarray((mapping / (typical if typical > _TINY else 1)).astype(np.float32))


def _direct(from_b_pre: NDArray[np.float32], v: Float64) -> float:
    """`direct` of equation (5): twice the typical ratio of |x' - b_pre| and |v|."""
    far, near = (float(np.median(np.linalg.norm(vectors, axis=1))) for vectors in (from_b_pre, v))
    return 2 * far / near if min(far, near) > _TINY else 1.0


def _bound(W_enc: NDArray[np.float32], w: Float64, stored: Float64, direct: float) -> Float64:
    """|w_j| and the loss of equation (5), [2, d_sae], of columns w [d_in, d_sae] that are stored as `stored`."""
    d_in = len(w)
    length = np.linalg.norm(w, axis=0)
    loss = np.linalg.norm(w - stored, axis=0)
    # A runtime may also multiply in float32.
    loss += (length + loss) * (d_in + 12) * _ROUNDING
    loss += direct * np.linalg.norm(W_enc.astype(np.float64), axis=0) * (d_in + 12) * _ROUNDING
    return np.asarray(np.stack([length, loss]) * (1 + d_in * 4 * _ROUNDING + _SLACK) + _TINY)


def rounded(graph: Graph, x: ir.Value, levels: ir.Value, stored: Stored) -> Rounded:
    """Activations x f32 [n, d_in] in int8.

    Args:
        graph: where to compute it.
        x: activations, normalised.
        levels: of an activation, f32 []: 63, or up to 127 where int8 products do not saturate; clipped to 1 to 127.
        stored: gives the arrays of `quantise`.
    """
    c = graph.op("Sub", x, stored("int8_centre"))
    v = graph.op("MatMul", c, stored("int8_map"))
    largest = graph.op("Max", graph.op("ReduceMax", graph.op("Abs", v), [1]), 1.0)
    scale = graph.op("Div", largest, _levels(graph, levels))
    v = graph.op("Div", v, scale)
    return Rounded(c, v, graph.op("Round", v), scale)


def product(graph: Graph, q: ir.Value, levels: ir.Value, stored: Stored) -> ir.Value:
    """s_j q . Q_j of equation (3), [n, d_sae] by place, of `rounded` activations q."""
    zero = graph.cast(graph.op("Add", _levels(graph, levels), 1.0), np.uint8)
    q = graph.op("DequantizeLinear", graph.op("QuantizeLinear", q, 1.0, zero), 1.0, zero)
    return graph.op("MatMul", q, graph.op("DequantizeLinear", stored("int8_weights"), stored("int8_scale"), axis=1))


def lengths(graph: Graph, x: Rounded, c: ir.Value, stored: Stored) -> ir.Value:
    """|e| and |q| [n, 2], which equation (7) multiplies with the rows of int8_bound; c = x' - b_pre f32 [n, d_in].

    Both cover what float32 may lose of v, and of p_j where the graph computes it from c. A token that is not finite
    gets NaN.
    """
    lost = graph.op("Mul", graph.op("ReduceL2", x.c, [1]), stored("int8_rounding"))
    e = graph.op("Add", graph.op("ReduceL2", graph.op("Sub", x.v, x.q), [1]), graph.op("Div", lost, x.scale))
    least = graph.op("Div", graph.op("Mul", graph.op("ReduceL2", c, [1]), stored("int8_direct")), x.scale)
    return graph.op("Concat", e, graph.op("Max", graph.op("ReduceL2", x.q, [1]), least), axis=1)


def _levels(graph: Graph, levels: ir.Value) -> ir.Value:
    return graph.op("Min", graph.op("Max", levels, 1.0), float(_WEIGHT_LEVELS))


def probe_graph() -> ir.Model:
    """x f32 [n, 8] -> y f32 [n, 16], 127 times the sum of x: the answer is right where int8 products do not saturate.

    `sae_runtime/engine/probe.onnx` is this graph; `sae_runtime.engine.sessions.int8_levels` runs it.
    """
    graph = Graph("probe")
    unit, zero = graph.constant(1, np.float32), graph.constant(_WEIGHT_LEVELS + 1, np.uint8)
    x = graph.op("QuantizeLinear", graph.input("x", np.float32, ["n", 8]), unit, zero)
    weights = graph.constant(np.full((8, 16), 127), np.int8, name="weights")
    w = graph.op("DequantizeLinear", weights, graph.constant(np.ones(16), np.float32, name="scale"), axis=1)
    y = graph.op("MatMul", graph.op("DequantizeLinear", x, unit, zero), w)
    graph.output(y, "y", np.float32, ["n", 16])
    return graph.model()


def _typical_lengths(v: Float64) -> Float64:
    """The means of |e| and |q| [2] over activations v [m, d_in]."""
    v = v / (np.maximum(np.abs(v).max(axis=1, keepdims=True), 1) / LEVELS)
    both = np.stack([np.linalg.norm(v - np.rint(v), axis=1), np.linalg.norm(np.rint(v), axis=1)])
    return np.asarray(both.mean(axis=1))


def _order(bias: Float64, error: Float64) -> NDArray[np.int64]:
    """Features [d_sae] in an order in which 16 neighbours are similar: by error, within strips of similar bias."""
    groups = len(bias) // GROUP
    ends = np.linspace(0, groups, round(math.sqrt(groups)) + 1).round().astype(np.int64) * GROUP
    strips = np.split(np.argsort(bias, kind="stable"), ends[1:-1])
    return np.concatenate([strip[np.argsort(error[strip], kind="stable")] for strip in strips])


def _transport(c: Float64, s: Float64) -> Float64:
    """Equation (4) for second moments c and s, each with a thousandth of its trace spread over the diagonal."""
    for moment in (c, s):
        moment += np.eye(len(c)) * (float(np.trace(moment)) / len(c) / 1000 + 1e-30)
    half, inverse = _power(c, 0.5), _power(c, -0.5)
    return _power(inverse @ _power(half @ s @ half, 0.5) @ inverse, 0.5)


def _power(matrix: Float64, exponent: float) -> Float64:
    """A power of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    powers: Float64 = (vectors * np.maximum(values, values.max() * 1e-12) ** exponent) @ vectors.T
    return powers
