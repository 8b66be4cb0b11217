"""The encoder in int8, and a bound on what that changes: one product gives an upper bound of every feature.

Derivation (our design). Let c = x - centre, M any invertible map, and v = (M c, kappa, ... kappa). A feature before
its relu is p_j = v . w_j with w_j = (M^-T W_enc[:, j], b_j / (kappa copies), ...), where b_j is the bias at the
centre. With s = max |v| / levels, q = round(v / s), e = v / s - q, and w_j = s_j Q_j + r_j for whole numbers Q_j of at
most 127,

    p_j / s = s_j q . Q_j + e . w_j + q . r_j <= s_j q . Q_j + |e| |w_j| + |q| |r_j| = u_j    (Cauchy and Schwarz)

|e| and |q| are one number a token, |w_j| and |r_j| one a feature: rounded up to whole numbers T and C, T C is a few
channels more of the product, which so gives u itself.

|e| |w_j| is small where |v| |w_j| is: on average it is least for M = (C^-1 # S)^1/2, where # is the geometric mean, C
the second moment of c and S that of the weights (the optimal transport map between Gaussians of these moments; Olkin
and Pukelsheim 1982). A random rotation after it makes the channels alike, so that s is small against |v|. The bias
needs several channels to be as fine as the rest. The bound is true of any activations, and tight of those like the
sample.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.exports.graph import Graph

# Of an activation, either side of 0. Where there is no VNNI, sums of two products u8 x s8 must fit 16 bits. Activations
# are stored from 1 on (zero point levels + 1; int8 would become uint8 with 128), so they do: 2 * 127 * 127 < 2^15.
LEVELS = 63
_WEIGHT_LEVELS = 127
_MOST_COPIES = 32
_ROUNDING = 2.0**-24  # of a float32 number, as a share of it

Arrays = dict[str, NDArray[np.generic]]
Stored = Callable[[str], ir.Value]  # gives an array of `quantise` as a value of a graph


@dataclass(frozen=True)
class Plan:
    """What a graph must know besides the arrays.

    Attributes:
        kappa: what the bias channels hold.
        copies: how many bias channels there are.
        alpha: a token's parts of the bound are T = ceil(alpha |e|), and the same of |q|.
        digits: over how many channels each T is spread.
        rounding: float32 gives v to within rounding |c|.
        margin: of the bound, for what float32 loses of the bound itself.
        channels: channels of the product, before they are filled up to a multiple of four.
    """

    kappa: float
    copies: int
    alpha: tuple[float, float]
    digits: tuple[int, int]
    rounding: float
    margin: float
    channels: int


def quantise(
    weights: Mapping[str, NDArray[np.float32]], x: NDArray[np.float32], rng: np.random.Generator
) -> tuple[Arrays, Plan]:
    """The encoder of `weights` in int8, for activations like x [m, d_in], which are as it takes them.

    Args:
        weights: of `Bundle.weights`.
        x: typical activations [m, d_in], normalised.
        rng: turns them.

    Returns:
        The arrays int8_centre [d_in], int8_map [d_in, d_in] (v = c int8_map), int8_weights [channels, d_sae] and
        int8_scale [d_sae]; and what else a graph must know.
    """
    w = weights["W_enc"].astype(np.float64)
    d_in, d_sae = w.shape
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    c = x.astype(np.float64) - centre
    rotation = np.linalg.qr(rng.standard_normal((d_in, d_in)))[0]
    mapping = (rotation @ _transport(c.T @ c / max(len(c), 1), w @ w.T / d_sae)).astype(np.float32)
    bias = weights["b_enc"] + (centre.astype(np.float64) - weights["b_pre"]) @ w
    w = np.asarray(np.linalg.solve(mapping.T.astype(np.float64), w), np.float64)
    kappa = float(np.float32(max(np.median(np.abs(c @ mapping.T).max(axis=1)), 1e-30)))
    top = np.maximum(np.abs(w).max(axis=0), 1e-30)
    copies = min(max(math.ceil(float((np.abs(bias) / top).max()) / kappa), 1), _MOST_COPIES)
    w = np.concatenate([w, np.tile(bias / (kappa * copies), (copies, 1))])

    scale = (np.maximum(np.abs(w).max(axis=0), 1e-30) / _WEIGHT_LEVELS).astype(np.float32)
    integers = np.rint(w / scale)
    length = np.linalg.norm(w, axis=0)
    lost = np.linalg.norm(w - integers * scale, axis=0)
    # A runtime may also multiply in float32. However it adds up m products, each of the m - 1 sums on the way is at
    # most |q| |w_j|, so that rounding costs less than m + 1 times its share; a few more for scales and for v / s.
    lost += (length + lost) * (len(w) + 8) * _ROUNDING
    margin = 1 + len(w) * 4 * _ROUNDING
    reach = math.sqrt(len(w)) / 2, _WEIGHT_LEVELS * math.sqrt(len(w))  # the largest |e| and |q| there can be
    alpha, digits, rows = zip(
        *(_bound_channels(part / scale * margin, most) for part, most in zip((length, lost), reach, strict=True)),
        strict=True,
    )
    integers = np.concatenate([integers, *rows])
    arrays: Arrays = {
        "int8_centre": centre,
        "int8_map": np.ascontiguousarray(mapping.T),
        "int8_weights": np.pad(integers, ((0, -len(integers) % 4), (0, 0))).astype(np.int8),
        "int8_scale": scale,
    }
    return arrays, Plan(
        kappa=kappa,
        copies=copies,
        alpha=alpha,
        digits=digits,
        # By the same argument, of vectors: all sums on the way to v are at most |mapping| |c|, the products |c| each.
        rounding=float(np.linalg.norm(mapping, 2)) * (d_in + math.sqrt(d_in) + 8) * _ROUNDING,
        margin=margin,
        channels=len(integers),
    )


def product(
    graph: Graph, x: ir.Value, levels: ir.Value, stored: Stored, plan: Plan, *, bounded: bool
) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
    """u [n, d_sae] and s [n, 1], such that s u is an upper bound of every feature before its relu; and T [n, 1] twice.

    Args:
        graph: where to compute it.
        x: activations f32 [n, d_in].
        levels: of an activation, f32 []: 63, or up to 127 where int8 products do not saturate; taken as 1 to 127.
        stored: gives the arrays of `quantise`.
        plan: of `quantise`.
        bounded: without it, s u is the int8 approximation itself, and T is empty.
    """
    one, unit = graph.constant([1], np.int64), graph.constant(1, np.float32)
    levels = graph.op("Min", graph.op("Max", levels, unit), graph.constant(_WEIGHT_LEVELS, np.float32))
    c = graph.op("Sub", x, stored("int8_centre"))
    v = graph.op("MatMul", c, stored("int8_map"))
    kappa = graph.constant(plan.kappa, np.float32)
    largest = graph.op("Max", graph.op("ReduceMax", graph.op("Abs", v), one), kappa)
    scale = graph.op("Div", largest, levels)
    v = graph.op("Div", graph.op("Pad", v, graph.constant([0, 0, 0, plan.copies], np.int64), kappa), scale)
    q = graph.op("Round", v)
    channels, parts = [q], []
    if bounded:
        lost = graph.op("Mul", graph.op("ReduceL2", c, one), graph.constant(plan.rounding, np.float32))
        error = graph.op("Add", graph.op("ReduceL2", graph.op("Sub", v, q), one), graph.op("Div", lost, scale))
        for size, alpha, digits in zip((error, graph.op("ReduceL2", q, one)), plan.alpha, plan.digits, strict=True):
            # The next whole number, also of a size that float32 takes for 0.
            part = graph.op("Floor", graph.op("Mul", size, graph.constant(alpha * plan.margin, np.float32)))
            part = graph.op("Add", part, unit)
            parts.append(part)
            channels.append(_spread(graph, part, digits))
    have = plan.channels if bounded else plan.channels - sum(plan.digits)
    fill = plan.channels + -plan.channels % 4 - have
    q = graph.op("Pad", graph.op("Concat", *channels, axis=1), graph.constant([0, 0, 0, fill], np.int64))
    zero = graph.cast(graph.op("Add", levels, unit), np.uint8)
    q = graph.op("DequantizeLinear", graph.op("QuantizeLinear", q, unit, zero), unit, zero)
    w = graph.op("DequantizeLinear", stored("int8_weights"), stored("int8_scale"), axis=1)
    return graph.op("MatMul", q, w), scale, parts


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


def _spread(graph: Graph, total: ir.Value, digits: int) -> ir.Value:
    """Whole numbers [n, digits] that add up to total [n, 1]: floor((T + i) / digits), at most LEVELS each."""
    steps = graph.constant([np.arange(digits)], np.float32)
    shares = graph.op("Floor", graph.op("Div", graph.op("Add", total, steps), graph.constant(digits, np.float32)))
    return graph.op("Min", shares, graph.constant(LEVELS, np.float32))


def _bound_channels(part: NDArray[np.float64], reach: float) -> tuple[float, int, NDArray[np.float64]]:
    """alpha, digits and weights [digits, d_sae] for a bound size * part [d_sae], where size <= reach.

    Shares of T and of C, both ascending, have a product of at least T C / digits (Chebyshev's inequality for sums).
    """
    digits = max(math.ceil(part.max() * reach / (LEVELS * _WEIGHT_LEVELS) * 1.05), 1)
    alpha = LEVELS * digits / reach / 1.02
    column = np.ceil(part * digits / alpha)
    return alpha, digits, np.floor((column + np.arange(digits)[:, None]) / digits)


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
