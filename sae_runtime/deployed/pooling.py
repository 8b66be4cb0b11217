"""One vector for each text, of the vectors of its tokens, as sentence-transformers computes it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

VECTORS = ("last_hidden_state", "token_embeddings")  # outputs with a vector for each token
POOLED = "sentence_embedding"  # an output that is pooled already
_LEAST = 1e-9  # of what a mean is divided by


def pooled(
    x: NDArray[np.float32], mask: NDArray[np.int64], modes: Sequence[str], *, prompt: int = 0
) -> NDArray[np.float32]:
    """The vectors of texts, joined over the modes: float32 [b, d * modes].

    Args:
        x: vectors of tokens [b, t, d].
        mask: 1 for tokens and 0 for padding behind them, [b, t].
        modes: cls, max, mean, mean_sqrt_len_tokens, weightedmean or lasttoken, one after the other.
        prompt: number of tokens at the beginning that are left out.

    >>> x, mask = np.array([[[1.0], [3.0], [9.0]]], np.float32), np.array([[1, 1, 0]])
    >>> pooled(x, mask, ["mean", "max", "lasttoken"]).tolist()
    [[2.0, 3.0, 3.0]]
    """
    x = x.astype(np.float32, copy=False)
    weights = mask.astype(np.float32)
    weights[:, :prompt] = 0
    return np.concatenate([_pooled(x, weights, mode) for mode in modes], axis=1)


def _pooled(x: NDArray[np.float32], weights: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
    rows = np.arange(len(x))
    vectors: NDArray[np.float32]
    if mode == "cls":
        vectors = x[rows, weights.argmax(axis=1)]
    elif mode == "lasttoken":
        last = weights.shape[1] - 1 - weights[:, ::-1].argmax(axis=1)
        last[~weights.any(axis=1)] = 0
        vectors = x[rows, last] * weights[rows, last, None]
    elif mode == "max":
        vectors = np.where(weights[..., None] > 0, x, -np.inf).max(axis=1)
    else:
        # Padding may hold NaN, which a product with 0 would spread.
        x = x if weights.all() else np.where(weights[..., None] > 0, x, 0)
        if mode == "weightedmean":
            weights = weights * np.arange(1, weights.shape[1] + 1, dtype=np.float32)
        total = (weights[:, None] @ x)[:, 0]
        size = np.maximum(weights.sum(axis=1, keepdims=True), _LEAST)
        vectors = total / (np.sqrt(size) if mode == "mean_sqrt_len_tokens" else size)
    return vectors


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1, float32 [n, d].

    >>> normalised(np.array([[3.0, 4.0]], np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    length = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found: NDArray[np.float32] = vectors / length
    return found
