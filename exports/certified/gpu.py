"""encode_gpu.onnx: the features of encode.onnx on a GPU, found by a float16 product and decided in float32.

Tensor cores multiply float16 several times faster than a GPU multiplies float32. Equation (11) of
docs/reference/certified-encoding.md bounds every pre-activation by a float16 product. The graph computes the features
with the largest bounds again in float32. It stays on the device, and CUDA can capture it: all sizes follow from n, and
every operator has a CUDA kernel. (In opset 21, onnxruntime has no CUDA kernel for ReduceMax, ReduceMin, Pad and Equal.)
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.encode import above, centred, weight
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.normalise import normalised

_ALIGN = 8  # channels that tensor cores take at once
_ERROR_SCALE = 256.0  # of |e|, which would be among the smallest float16 numbers
_MOST_BIAS = 1000.0  # of a bias over kappa, in float16
_LEAST_KAPPA = 1e-15  # float32 holds its square
_EXTRA = 4  # a quarter more candidates than slots
_LEAST_EXTRA = 16

# The rounding that equation (12) allows for, relative to the rounded number unless the table says otherwise.
#
# constant           covers                                     derivation
# _FLOAT32           a sum in float32, at each channel          half a unit of its 24 bits
# _FLOAT16           a number in float16                        half a unit of its 11 bits
# FLOAT16_ROUNDINGS  float16 numbers before the result          one in a part of a split product, two where the GPU
#                                                               adds the parts, one as the result
# _SMALLEST_HALF     channels below the normal float16 numbers  their unit, once for each channel
# _Q_LENGTH          |q| instead of |v / s| = 1                 1 + 2^-10 for q in float16, and as much again
# _BOUND_CHANNELS    the rounding of the bound's own channels   they add less than a tenth to the sums
# _V_IN_FLOAT32      v / s, which the GPU computes in float32   eight float32 roundings, relative to |w_j|
_FLOAT32 = 2.0**-24
_FLOAT16 = 2.0**-11
FLOAT16_ROUNDINGS = 4
_SMALLEST_HALF = 2.0**-24
_Q_LENGTH = 1 + 2.0**-9
_BOUND_CHANNELS = 1.1
_V_IN_FLOAT32 = 2.0**-21


def half_precision(
    weights: Mapping[str, NDArray[np.float32]],
    x: NDArray[np.float32],
    float16_roundings: int = FLOAT16_ROUNDINGS,
) -> dict[str, NDArray[np.generic]]:
    """The encoder in float16 with its bound (our design; docs/reference/certified-encoding.md derives it).

    Args:
        weights: of `Bundle.weights`.
        x: typical activations [m, d_in], normalised; they decide kappa, which changes the speed only.
        float16_roundings: how many times a number is rounded to float16 before the result.

    Returns:
        half_weights: float16 [channels, d_sae], a multiple of 8 channels: W_enc, the bias, |w_j|, rest_j of equation
            (12), then zeros.
        half_kappa: float32 [1].

    Raises:
        ValueError: W_enc holds numbers that are too large for float16.

    >>> weights = {"W_enc": np.eye(3, dtype=np.float32), "b_enc": np.zeros(3), "b_pre": np.zeros(3)}
    >>> half_precision(weights, np.ones((1, 3), np.float32))["half_weights"].shape
    (8, 3)
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
            f"W_enc reaches {np.abs(w).max():g}, and float16 ends at 65,504; export without the graph 'gpu'"
        )
    channels = math.ceil((len(w) + 2) / _ALIGN) * _ALIGN
    length, stored_length = np.linalg.norm(w, axis=0), np.linalg.norm(half.astype(np.float64), axis=0)
    lost = np.linalg.norm(w - half, axis=0)
    rounding = channels * _FLOAT32 + float16_roundings * _FLOAT16
    rest = (lost + _BOUND_CHANNELS * rounding * stored_length) * _Q_LENGTH
    rest = rest + length * _V_IN_FLOAT32 + channels * _SMALLEST_HALF
    half = np.concatenate([half, _up(length[None] / _ERROR_SCALE), _up(rest[None])])
    return {
        "half_weights": np.pad(half, ((0, channels - len(half)), (0, 0))),
        "half_kappa": np.array([kappa], np.float32),
    }


def candidates(slots: int, d_sae: int) -> int:
    """How many features of a token the graph computes again in float32, for a number of slots.

    >>> candidates(32, 24_576), candidates(96, 24_576), candidates(6, 10)
    (48, 120, 10)
    """
    return min(slots + max(slots // _EXTRA, _LEAST_EXTRA), d_sae)


def gpu_graph(bundle: Bundle, specs: Mapping[str, TensorSpec]) -> ir.Model:
    """x f32 [n, d_in] -> indices i64, values f32 [n, slots], certain bool [n].

    A row that is `certain` is the row of encode.onnx with its default inputs; other rows are not complete. A row that
    is not finite is not certain.

    Args:
        bundle: whose features these are.
        specs: where derived.safetensors holds W_enc_rows and the arrays of `half_precision`.
    """
    graph = Graph("encode_gpu")
    architecture, slots = bundle.manifest.architecture, bundle.manifest.slots
    x = graph.input("x", np.float32, ["n", architecture.d_in])
    c = centred(graph, bundle, normalised(graph, architecture, x).x)
    kappa = graph.derived("half_kappa", specs)
    square = graph.op("Add", graph.op("ReduceSumSquare", c, [1]), graph.op("Mul", kappa, kappa))
    finite = graph.op("Less", square, np.finfo(np.float32).max)
    size = graph.op("Sqrt", square)
    v = graph.op("Concat", graph.op("Div", c, size), graph.op("Div", kappa, size), axis=1)
    # TopK may give any number as the index of a NaN.
    c, v = (graph.op("Where", finite, part, 0.0) for part in (c, v))
    fill = specs["half_weights"].shape[0] - architecture.d_in - 3
    bound = _bound(graph, v, graph.derived("half_weights", specs), fill)
    count = candidates(slots, architecture.d_sae)
    bounds, features = graph.ops("TopK", 2, bound, [count])

    rows = graph.op("Gather", graph.derived("W_enc_rows", specs), features)
    product = graph.op("Squeeze", graph.op("MatMul", rows, graph.op("Unsqueeze", c, [2])), [2])
    values = graph.op("Relu", graph.op("Add", product, graph.op("Gather", weight(graph, bundle, "b_enc"), features)))
    if architecture.selection == "threshold":
        values = above(graph, values, graph.op("Gather", weight(graph, bundle, "threshold"), features))
    values, position = graph.ops("TopK", 2, values, [slots])
    indices = graph.op("GatherElements", features, position, axis=1)

    certain = finite
    if count < architecture.d_sae:  # equation (13)
        cut = graph.constant(0, np.float32)
        if architecture.selection == "topk":
            cut = graph.op("Div", graph.op("Gather", values, [slots - 1], axis=1), size)
        least = graph.cast(graph.op("Gather", bounds, [count - 1], axis=1), np.float32)
        certain = graph.op("And", finite, graph.op("LessOrEqual", least, cut))
    graph.output(indices, "indices", np.int64, ["n", slots])
    graph.output(values, "values", np.float32, ["n", slots])
    graph.output(graph.op("Squeeze", certain, [1]), "certain", np.bool_, ["n"])
    return graph.model()


def _bound(graph: Graph, v: ir.Value, weights: ir.Value, fill: int) -> ir.Value:
    """u_j of equation (11), f16 [n, d_sae], for v / s [n, d_in + 1]; the last `fill` rows of the weights are 0."""
    q = graph.cast(v, np.float16)
    error = graph.op("ReduceL2", graph.op("Sub", v, graph.cast(q, np.float32)), [1])
    # |e| is rounded up in float32, and then to float16. It is never NaN, so 0 times it is 0.
    error = graph.op("Mul", error, _ERROR_SCALE * (1 + 2.0**-9))
    error = graph.op("Add", error, _SMALLEST_HALF)
    unit = graph.op("Add", graph.op("Mul", error, 0.0), 1.0)
    error, unit = (graph.cast(part, np.float16) for part in (error, unit))
    return graph.op("MatMul", graph.op("Concat", q, error, unit, *[unit] * fill, axis=1), weights)


def _up(numbers: NDArray[np.float64]) -> NDArray[np.float16]:
    """The numbers in float16, never smaller."""
    half = numbers.astype(np.float16)
    return np.where(half.astype(np.float64) < numbers, np.nextafter(half, np.float16(np.inf)), half)
