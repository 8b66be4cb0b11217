"""The encoder in int8, and a bound on what that changes.

Derivation (our design). Let c = x - centre, M any invertible map, and v = M c. A feature before its relu is
p_j = v . w_j + a_j with w_j = M^-T W_enc[:, j] and a_j the bias at the centre. With s = max |v| / levels,
q = round(v / s), e = v / s - q, and w_j = s_j Q_j + r_j for whole numbers Q_j of at most 127,

    p_j / s = s_j q . Q_j + e . w_j + q . r_j + a_j / s
           <= s_j q . Q_j + |e| |w_j| + |q| |r_j| + a_j / s    (Cauchy and Schwarz)

|e| |w_j| is small where |v| |w_j| is: on average it is least for M = (C^-1 # S)^1/2, where # is the geometric mean, C
the second moment of c and S that of the weights (the optimal transport map between Gaussians of these moments; Olkin
and Pukelsheim 1982). A random rotation after it makes the channels alike, so that s is small against |v|. The bound is
true of any activations, and tight of those like the sample. What float32 makes of p_j, where it is computed from
x - b_pre and W_enc, may be larger by a share of |x - b_pre| |W_enc[:, j]|, which is added.

Only the first term is a product. Features are put in an order in which 16 neighbours have like a_j, |w_j| and |r_j|:
then the rest need not be added to every feature of every token, but only to the maxima of groups (approximation.py).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.exports.graph import Graph
from sae_runtime.exports.select import GROUP

# Of an activation, either side of 0. Where there is no VNNI, sums of two products u8 x s8 must fit 16 bits. Activations
# are stored from 1 on (zero point levels + 1; int8 would become uint8 with 128), so they do: 2 * 127 * 127 < 2^15.
LEVELS = 63
_WEIGHT_LEVELS = 127
_ROUNDING = 2.0**-24  # of a float32 number, as a share of it
_SLACK = 2.0**-20  # what a few float32 operations lose, and more
_TINY = 1e-37  # float32 rounds less to 0

Arrays = dict[str, NDArray[np.generic]]
Stored = Callable[[str], ir.Value]  # gives an array of `quantise` as a value of a graph


class Rounded(NamedTuple):
    """Activations in int8: c [n, d_in] from the centre, v / s and q = round(v / s) [n, channels], and s [n, 1]."""

    c: ir.Value
    v: ir.Value
    q: ir.Value
    scale: ir.Value


def quantise(weights: Mapping[str, NDArray[np.float32]], x: NDArray[np.float32], rng: np.random.Generator) -> Arrays:
    """The encoder of `weights` in int8, for activations like x [m, d_in], which are as it takes them.

    Args:
        weights: of `Bundle.weights`; d_sae is a multiple of 16.
        x: typical activations [m, d_in], normalised.
        rng: turns them.

    Returns:
        int8_centre [d_in] and int8_map [d_in, channels] (v = c int8_map, typically at most 1; d_in filled up to a
        multiple of four); int8_order [d_sae], which feature stands where, and in this order, by groups of 16:
        int8_weights [channels, d_sae], int8_scale [d_sae], int8_bias [groups, 16], a_j; int8_bound [2, groups], the
        largest |w_j| and |r_j| of a group, and int8_share [groups, 16], what a feature needs of them. int8_rounding
        [1]: float32 gives v to within so many |c|. int8_direct [1]: what float32 makes of p_j is allowed for in |r_j|
        where |q| is at least so many |x - b_pre| / s. Bounds and biases are rounded up by what float32 may lose.
    """
    w = weights["W_enc"].astype(np.float64)
    d_in, d_sae = w.shape
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    c = x.astype(np.float64) - centre
    rotation = np.linalg.qr(rng.standard_normal((d_in, d_in)))[0]
    mapping = rotation @ _transport(c.T @ c / max(len(c), 1), w @ w.T / d_sae)
    typical = float(np.median(np.abs(c @ mapping.T).max(axis=1)))
    mapping = (mapping / (typical if typical > _TINY else 1)).astype(np.float32)
    bias = weights["b_enc"] + (centre.astype(np.float64) - weights["b_pre"]) @ w
    w = np.asarray(np.linalg.solve(mapping.T.astype(np.float64), w), np.float64)

    scale = (np.maximum(np.abs(w).max(axis=0), 1e-30) / _WEIGHT_LEVELS).astype(np.float32)
    integers = np.rint(w / scale)
    length = np.linalg.norm(w, axis=0)
    lost = np.linalg.norm(w - integers * scale, axis=0)
    # A runtime may also multiply in float32. However it adds up m products, each of the m - 1 sums on the way is at
    # most |q| |w_j|, so that rounding costs less than m + 1 times its share; a few more for scales, for v / s and for
    # what is added to the product.
    lost += (length + lost) * (d_in + 12) * _ROUNDING
    sample = c @ mapping.T.astype(np.float64)
    far, near = (float(np.median(np.linalg.norm(each, axis=1))) for each in (x - weights["b_pre"], sample))
    direct = 2 * far / near if min(far, near) > _TINY else 1.0
    lost += direct * np.linalg.norm(weights["W_enc"].astype(np.float64), axis=0) * (d_in + 12) * _ROUNDING
    bound = np.stack([length, lost]) * (1 + d_in * 4 * _ROUNDING + _SLACK) + _TINY

    theta = weights["threshold"].astype(np.float64) if "threshold" in weights else 0.0
    order = _order(bias - theta, _typical(sample) @ bound)
    by_group = bound[:, order].reshape(2, -1, GROUP)
    most = by_group.max(axis=2)
    share = (by_group / most[:, :, None]).max(axis=0)
    fill = -d_in % 4
    rounding = float(np.linalg.norm(mapping, 2)) * (d_in + math.sqrt(d_in) + 8) * _ROUNDING
    return {
        "int8_centre": centre,
        "int8_map": np.pad(mapping.T, ((0, 0), (0, fill))),
        # By the argument above, of vectors: all sums on the way to v are at most |mapping| |c|, the products |c| each.
        "int8_rounding": np.array([rounding], np.float32),
        "int8_direct": np.array([1 / direct], np.float32),
        "int8_order": order,
        "int8_weights": np.pad(integers[:, order], ((0, fill), (0, 0))).astype(np.int8),
        "int8_scale": scale[order],
        "int8_bias": (bias + (np.abs(bias) + np.abs(weights["b_enc"])) * _SLACK + _TINY)[order]
        .reshape(-1, GROUP)
        .astype(np.float32),
        "int8_bound": (most * (1 + _SLACK)).astype(np.float32),
        "int8_share": (share * (1 + _SLACK)).astype(np.float32),
    }


def rounded(graph: Graph, x: ir.Value, levels: ir.Value, stored: Stored) -> Rounded:
    """Activations x f32 [n, d_in] in int8.

    Args:
        graph: where to compute it.
        x: activations, normalised.
        levels: of an activation, f32 []: 63, or up to 127 where int8 products do not saturate; taken as 1 to 127.
        stored: gives the arrays of `quantise`.
    """
    one, unit = graph.constant([1], np.int64), graph.constant(1, np.float32)
    c = graph.op("Sub", x, stored("int8_centre"))
    v = graph.op("MatMul", c, stored("int8_map"))
    scale = graph.op(
        "Div", graph.op("Max", graph.op("ReduceMax", graph.op("Abs", v), one), unit), _levels(graph, levels)
    )
    v = graph.op("Div", v, scale)
    return Rounded(c, v, graph.op("Round", v), scale)


def product(graph: Graph, q: ir.Value, levels: ir.Value, stored: Stored) -> ir.Value:
    """s_j q . Q_j [n, d_sae] of `rounded` activations q, the features in their order of `quantise`."""
    unit = graph.constant(1, np.float32)
    zero = graph.cast(graph.op("Add", _levels(graph, levels), unit), np.uint8)
    q = graph.op("DequantizeLinear", graph.op("QuantizeLinear", q, unit, zero), unit, zero)
    return graph.op("MatMul", q, graph.op("DequantizeLinear", stored("int8_weights"), stored("int8_scale"), axis=1))


def sizes(graph: Graph, x: Rounded, c: ir.Value, stored: Stored) -> ir.Value:
    """|e| and |q| [n, 2], which the rows of int8_bound are multiplied with; c = x - b_pre f32 [n, d_in].

    With what float32 may lose of v, and of p_j computed from c; NaN where a token is not finite.
    """
    one = graph.constant([1], np.int64)
    lost = graph.op("Div", graph.op("Mul", graph.op("ReduceL2", x.c, one), stored("int8_rounding")), x.scale)
    error = graph.op("Add", graph.op("ReduceL2", graph.op("Sub", x.v, x.q), one), lost)
    least = graph.op("Div", graph.op("Mul", graph.op("ReduceL2", c, one), stored("int8_direct")), x.scale)
    return graph.op("Concat", error, graph.op("Max", graph.op("ReduceL2", x.q, one), least), axis=1)


def _levels(graph: Graph, levels: ir.Value) -> ir.Value:
    least, most = graph.constant(1, np.float32), graph.constant(_WEIGHT_LEVELS, np.float32)
    return graph.op("Min", graph.op("Max", levels, least), most)


def probe_graph() -> ir.Model:
    """x f32 [n, 8] -> y f32 [n, 16], 127 times the sum of x: right where int8 products do not saturate.

    `sae_runtime/probe.onnx` is this graph; `sae_runtime.sessions.int8_levels` asks it.
    """
    graph = Graph("probe")
    unit, zero = graph.constant(1, np.float32), graph.constant(_WEIGHT_LEVELS + 1, np.uint8)
    x = graph.op("QuantizeLinear", graph.input("x", np.float32, ["n", 8]), unit, zero)
    weights = graph.constant(np.full((8, 16), 127), np.int8, name="weights")
    w = graph.op("DequantizeLinear", weights, graph.constant(np.ones(16), np.float32, name="scale"), axis=1)
    y = graph.op("MatMul", graph.op("DequantizeLinear", x, unit, zero), w)
    graph.output(y, "y", np.float32, ["n", 16])
    return graph.model()


def _typical(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """|e| and |q| [2] of activations v [m, d_in], on average."""
    v = v / (np.maximum(np.abs(v).max(axis=1, keepdims=True), 1) / LEVELS)
    both = np.stack([np.linalg.norm(v - np.rint(v), axis=1), np.linalg.norm(np.rint(v), axis=1)])
    return np.asarray(both.mean(axis=1))


def _order(own: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.int64]:
    """Features [d_sae] in an order in which 16 neighbours are alike in both: by size within strips of like `own`."""
    groups = len(own) // GROUP
    ends = np.linspace(0, groups, round(math.sqrt(groups)) + 1).round().astype(np.int64) * GROUP
    strips = np.split(np.argsort(own, kind="stable"), ends[1:-1])
    return np.concatenate([strip[np.argsort(size[strip], kind="stable")] for strip in strips])


def _transport(c: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(c^-1 # s)^1/2 for second moments c and s, each with a thousandth of its trace spread over the diagonal."""
    for moment in (c, s):
        moment += np.eye(len(c)) * (float(np.trace(moment)) / len(c) / 1000 + 1e-30)
    half, inverse = _power(c, 0.5), _power(c, -0.5)
    return _power(inverse @ _power(half @ s @ half, 0.5) @ inverse, 0.5)


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """A power of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    powers: NDArray[np.float64] = (vectors * np.maximum(values, values.max() * 1e-12) ** exponent) @ vectors.T
    return powers
