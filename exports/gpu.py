"""encode_gpu.onnx: the features of encode.onnx for a GPU, from a float16 product that names candidates.

Tensor cores multiply float16 several times faster than a GPU multiplies float32. With c = x' - b_pre, v = (c, kappa)
and w_j = (W_enc[:, j], b_j / kappa), a feature before its relu is p_j = v . w_j (where there is a threshold, b_j is the
bias less the threshold, and a match has p_j > 0). Let s = |v|, q and Q_j be v / s and w_j in float16, e = v / s - q and
r_j = w_j - Q_j. Then

    p_j / s = q . Q_j + e . w_j + q . r_j <= q . Q_j + |e| |w_j| + |q| |r_j| + rounding = u_j    (Cauchy and Schwarz)

|e| is one number a token and |w_j|, |r_j| one a feature: as further channels they make the product u itself. Rounding
is that of the product, relative to |q| |Q_j|, which bounds every partial sum: float32 at each channel, float16 for
the result and the parts of a product that the GPU splits.

The features with the largest u are computed again in float32, from their rows of W_enc. A token is `certain` where all
others have u <= the cut. Sizes follow from n alone and every operator has a CUDA kernel (onnxruntime has none of opset
21 for ReduceMax, ReduceMin, Pad and Equal), so that the graph stays on the device and can be captured as a CUDA graph.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle import DERIVED, Bundle
from sae_runtime.exports.encode import above, centred, weight
from sae_runtime.exports.graph import Graph, external
from sae_runtime.exports.normalise import normalised
from sae_runtime.tensors import TensorSpec

_ALIGN = 8  # channels: what tensor cores take at once
_HALF = 2.0**-11  # relative rounding of float16
_SMALLEST_HALF = 2.0**-24
_ROUNDINGS = 4  # to float16, of a number on its way: in its part of a split product, twice in their sum, as the result
_SCALE = 256.0  # of |e|, which else would be among the smallest float16 numbers
_EXTRA = 4  # a quarter more candidates than slots
_LEAST_EXTRA = 16
_MOST_BIAS = 1000.0  # over kappa, in float16
_LEAST_KAPPA = 1e-15  # whose square float32 holds


def half_precision(
    weights: Mapping[str, NDArray[np.float32]], x: NDArray[np.float32]
) -> dict[str, NDArray[np.generic]]:
    """The encoder in float16 with its bound.

    Args:
        weights: of `Bundle.weights`.
        x: typical activations [m, d_in], normalised; they decide the size of kappa, on which only speed depends.

    Returns:
        half_weights float16 [channels, d_sae], a multiple of 8 channels: W_enc, the bias, |w|, what is left of the
        bound, and zeros; and half_kappa float32 [1].

    Raises:
        ValueError: W_enc holds numbers that are too large for float16.
    """
    w = weights["W_enc"].astype(np.float64)
    bias = weights["b_enc"] - weights.get("threshold", np.zeros(1)).astype(np.float64)
    length = np.linalg.norm(x.astype(np.float64) - weights["b_pre"], axis=1)
    kappa = float(np.float32(max(np.median(length) / 2, np.abs(bias).max() / _MOST_BIAS, _LEAST_KAPPA)))
    w = np.concatenate([w, bias[None] / kappa])
    with np.errstate(over="ignore"):
        half = w.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            f"W_enc reaches {np.abs(w).max():g}, and float16 ends at 65,504; export without precision 'gpu'"
        )
    norm, stored = np.linalg.norm(w, axis=0), np.linalg.norm(half.astype(np.float64), axis=0)
    lost = np.linalg.norm(w - half, axis=0)
    channels = math.ceil((len(w) + 2) / _ALIGN) * _ALIGN
    rounding = channels * 2.0**-24 + _ROUNDINGS * _HALF
    # |q| is at most 1 + 2 ** -10; a tenth of the rounding is for the channels of the bound; v / s is that of float32.
    rest = (lost + 1.1 * rounding * stored) * (1 + 2.0**-9) + norm * 2.0**-21 + channels * _SMALLEST_HALF
    half = np.concatenate([half, _up(norm[None] / _SCALE), _up(rest[None])])
    return {
        "half_weights": np.pad(half, ((0, channels - len(half)), (0, 0))),
        "half_kappa": np.array([kappa], np.float32),
    }


def candidates(width: int, d_sae: int) -> int:
    """How many features of a token are computed again, where it has that many slots."""
    return min(width + max(width // _EXTRA, _LEAST_EXTRA), d_sae)


def gpu_graph(bundle: Bundle, specs: Mapping[str, TensorSpec]) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, width], certain bool [n].

    Rows are those of encode.onnx with its default inputs where `certain`; the others are not whole. A row that is not
    finite is not certain.

    Args:
        bundle: whose features these are.
        specs: where derived.safetensors holds W_enc_rows and the arrays of `half_precision`.
    """
    graph = Graph("encode_gpu")
    encoder, width = bundle.manifest.encoder, bundle.manifest.width

    def stored(name: str) -> ir.Value:
        return graph.weight(external(name, DERIVED, specs[name]))

    one, last = graph.constant([1], np.int64), graph.constant([2], np.int64)
    x = graph.input("x", np.float32, ["n", encoder.d_in])
    c = centred(graph, bundle, normalised(graph, encoder, x).x)
    kappa = stored("half_kappa")
    square = graph.op("Add", graph.op("ReduceSumSquare", c, one), graph.op("Mul", kappa, kappa))
    finite = graph.op("Less", square, graph.constant(np.finfo(np.float32).max, np.float32))
    size = graph.op("Sqrt", square)
    v = graph.op("Concat", graph.op("Div", c, size), graph.op("Div", kappa, size), axis=1)
    # Of NaN, TopK may give any number for an index.
    c, v = (graph.op("Where", finite, part, graph.constant(0, np.float32)) for part in (c, v))
    fill = specs["half_weights"].shape[0] - encoder.d_in - 3
    bound = _bound(graph, v, stored("half_weights"), fill)
    most = candidates(width, encoder.d_sae)
    bounds, features = graph.ops("TopK", 2, bound, graph.constant([most], np.int64))

    product = graph.op("MatMul", graph.op("Gather", stored("W_enc_rows"), features), graph.op("Unsqueeze", c, last))
    bias = graph.op("Gather", weight(graph, bundle, "b_enc"), features)
    values = graph.op("Relu", graph.op("Add", graph.op("Squeeze", product, last), bias))
    if encoder.selection == "threshold":
        values = above(graph, values, graph.op("Gather", weight(graph, bundle, "threshold"), features))
    values, at = graph.ops("TopK", 2, values, graph.constant([width], np.int64))
    indices = graph.op("GatherElements", features, at, axis=1)

    certain = finite
    if most < encoder.d_sae:
        cut = graph.constant(0, np.float32)
        if encoder.selection == "topk":
            cut = graph.op("Div", graph.op("Gather", values, graph.constant([width - 1], np.int64), axis=1), size)
        least = graph.op("Gather", bounds, graph.constant([most - 1], np.int64), axis=1)
        certain = graph.op("And", finite, graph.op("LessOrEqual", graph.cast(least, np.float32), cut))
    graph.output(indices, "indices", np.int64, ["n", width])
    graph.output(values, "values", np.float32, ["n", width])
    graph.output(graph.op("Squeeze", certain, one), "certain", np.bool_, ["n"])
    return graph.model()


def _bound(graph: Graph, v: ir.Value, weights: ir.Value, fill: int) -> ir.Value:
    """u f16 [n, d_sae], of v / s [n, d_in + 1]; the last `fill` rows of the weights are 0."""
    q = graph.cast(v, np.float16)
    error = graph.op("ReduceL2", graph.op("Sub", v, graph.cast(q, np.float32)), graph.constant([1], np.int64))
    # |e| rounded up, and once more to float16. A norm is never NaN here, so that 0 times it is 0.
    error = graph.op("Mul", error, graph.constant(_SCALE * (1 + 2.0**-9), np.float32))
    error = graph.op("Add", error, graph.constant(_SMALLEST_HALF, np.float32))
    unit = graph.op("Add", graph.op("Mul", error, graph.constant(0, np.float32)), graph.constant(1, np.float32))
    error, unit = (graph.cast(part, np.float16) for part in (error, unit))
    return graph.op("MatMul", graph.op("Concat", q, error, unit, *[unit] * fill, axis=1), weights)


def _up(numbers: NDArray[np.float64]) -> NDArray[np.float16]:
    """The numbers in float16, never smaller."""
    half = numbers.astype(np.float16)
    return np.where(half.astype(np.float64) < numbers, np.nextafter(half, np.float16(np.inf)), half)
