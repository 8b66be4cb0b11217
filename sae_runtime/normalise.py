"""What some SAEs do to activations before they encode them."""

import numpy as np
from numpy.typing import NDArray

LAYER_EPSILON = 1e-5  # that of SAELens and OpenAI, of every file that says "layer norm"
SMALLEST_SIZE = 1e-30  # so that activations of 0 stay 0 under norm "length"

Array = NDArray[np.float32]


def normalised(x: Array, norm: str) -> tuple[Array, Array, Array]:
    """x' [n, d_in] of activations x [n, d_in], and each token's mean and size [n, 1]; see `manifest.Encoder`.

    Args:
        x: activations, float32.
        norm: "none", "layer" or "length".
    """
    mean, size = np.zeros((len(x), 1), np.float32), np.ones((len(x), 1), np.float32)
    if norm == "layer":
        mean = x.mean(axis=1, keepdims=True)
        size = x.std(axis=1, keepdims=True, ddof=1)
        return (x - mean) / (size + np.float32(LAYER_EPSILON)), mean, size
    if norm == "length":
        size = np.linalg.norm(x, axis=1, keepdims=True) / np.float32(np.sqrt(x.shape[1]))
        return x / np.maximum(size, np.float32(SMALLEST_SIZE)), mean, size
    return x, mean, size
