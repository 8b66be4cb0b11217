"""The norms that some SAEs apply to activations before they encode them."""

import numpy as np
from numpy.typing import NDArray

LAYER_EPSILON = 1e-5  # the epsilon of SAELens and OpenAI, in every format that says "layer norm"
TINY = 1e-30  # replaces 0 in divisors

Array = NDArray[np.float32]


def normalised(x: Array, norm: str) -> tuple[Array, Array, Array]:
    """Normalised activations x' [n, d_in], and the mean and size of each token [n, 1]; see `manifest.Architecture`.

    A token of zeros stays zero under every norm. Each token is first divided by the mean of its magnitudes, so that its
    squares neither overflow nor underflow.

    Args:
        x: activations, float32 [n, d_in].
        norm: "none", "layer" or "length".

    >>> x, mean, size = normalised(np.array([[3.0, 4.0]], np.float32), "length")
    >>> size.round(3)  # |x| / sqrt(d_in)
    array([[3.536]], dtype=float32)
    """
    if norm == "none":
        return x, np.zeros((len(x), 1), np.float32), np.ones((len(x), 1), np.float32)
    d_in, tiny = x.shape[1], np.float32(TINY)
    unit = np.abs(x * np.float32(1 / d_in)).sum(axis=1, keepdims=True)
    y = x / np.where(unit > 0, unit, 1).astype(np.float32)
    if norm == "length":
        size = np.linalg.norm(y, axis=1, keepdims=True) * np.float32(d_in**-0.5)
        return y / np.maximum(size, tiny), np.zeros_like(unit), size * unit
    mean = y.mean(axis=1, keepdims=True)
    y = y - mean
    size = np.linalg.norm(y, axis=1, keepdims=True) * np.float32((d_in - 1) ** -0.5)
    epsilon = np.float32(LAYER_EPSILON) / np.maximum(unit, tiny)
    return y / (size + epsilon), mean * unit, size * unit
