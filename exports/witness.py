"""The second witness: the mathematics of every graph in float64 numpy. It shares no code with the graphs.

A graph is *exact* where its features are those of the witness, except for values within 1e-6 of the cut, and its
values agree within 1e-5. Both are relative to the largest value of the row: sums differ in their last bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = Mapping[str, NDArray[np.float32]]
_CUT_TOLERANCE = 1e-6
_VALUE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Matches:
    """Pre-activations z [n, d_sae], which are kept, and the cuts, broadcastable to z, that decide it."""

    z: NDArray[np.float64]
    kept: NDArray[np.bool_]
    cuts: tuple[NDArray[np.float64], ...]


def normalise(x: ArrayLike, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """x' [..., d_in] of x, and each token's mean and size [..., 1]; see `manifest.Architecture`."""
    x = np.asarray(x, np.float64)
    d_in, none = x.shape[-1], np.zeros((*x.shape[:-1], 1))
    if norm == "layer":
        mean = x.sum(axis=-1, keepdims=True) / d_in
        size = np.sqrt(((x - mean) ** 2).sum(axis=-1, keepdims=True) / (d_in - 1))
        return (x - mean) / (size + 1e-5), mean, size
    if norm == "length":
        size = np.sqrt((x**2).sum(axis=-1, keepdims=True) / d_in)
        return np.where(size > 0, x / np.where(size > 0, size, 1), 0), none, size
    return x, none, none + 1


def pre_activations(weights: Weights, x: ArrayLike) -> NDArray[np.float64]:
    """The pre-activations relu((x' - b_pre) W_enc + b_enc) [..., d_sae] of x' [..., d_in]."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    return np.maximum((np.asarray(x, np.float64) - w.get("b_pre", w["b_dec"])) @ w["W_enc"] + w["b_enc"], 0)


def token_choice(z: NDArray[np.float64], k: int) -> Matches:
    """The k largest of every row (TopK).

    >>> token_choice(np.array([[5.0, 0.0, 3.0, 1.0]]), 2).kept
    array([[ True, False,  True, False]])
    """
    kept = _largest(z, k) & (z > 0)
    return Matches(z, kept, (_cut(z, kept)[:, None],))


def group_choice(z: NDArray[np.float64], k: int) -> Matches:
    """The largest of each of k runs of neighbours in every row.

    >>> group_choice(np.array([[5.0, 6.0, 3.0, 1.0]]), 2).kept
    array([[False,  True,  True, False]])
    """
    runs = z.reshape(len(z), k, z.shape[1] // k)
    kept = np.zeros_like(runs, bool)
    np.put_along_axis(kept, runs.argmax(axis=2)[:, :, None], True, axis=2)
    kept &= runs > 0
    cut = _cut(runs.reshape(-1, runs.shape[2]), kept.reshape(-1, runs.shape[2])).reshape(len(z), k, 1)
    return Matches(z, kept.reshape(z.shape), (np.broadcast_to(cut, runs.shape).reshape(z.shape),))


def threshold(z: NDArray[np.float64], threshold: ArrayLike) -> Matches:
    """Those above threshold, which is one number or one for each feature.

    >>> threshold(np.array([[5.0, 0.0, 3.0]]), [4.0, 0.0, 3.0]).kept
    array([[ True, False, False]])
    """
    cut = np.broadcast_to(np.asarray(threshold, np.float64), z.shape[1:])
    return Matches(z, z > cut, (cut,))


def joint(
    z: NDArray[np.float64],
    k: float,
    max_density: NDArray[np.float64] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> Matches:
    """The round(k * valid rows) largest of the batch, with at most round(cap_i * valid rows) in column i.

    >>> joint(np.array([[5.0, 3.0], [4.0, 2.0]]), 1.0).kept
    array([[ True, False],
           [ True, False]])
    >>> joint(np.array([[5.0, 3.0], [4.0, 2.0]]), 1.0, max_density=np.array([0.5, 1.0])).kept
    array([[ True,  True],
           [False, False]])
    """
    valid = np.ones(len(z), bool) if valid is None else valid
    tokens = int(valid.sum())
    candidates = np.where(valid[:, None], z, 0)
    eligible = candidates > 0
    cuts = []
    if max_density is not None:
        for feature in range(z.shape[1]):
            limit = int(np.rint(max_density[feature] * tokens))
            eligible[:, feature] &= _largest(candidates[None, :, feature], limit)[0]
        cuts.append(_cut(candidates.T, eligible.T)[None, :])
        candidates = np.where(eligible, candidates, 0)
    kept = _largest(candidates.reshape(1, -1), int(np.rint(k * tokens))).reshape(z.shape) & eligible
    return Matches(z, kept, (*cuts, _cut(candidates.reshape(1, -1), kept.reshape(1, -1))))


def decode(weights: Weights, indices: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of values times decoder rows, plus b_dec: [n, d_out].

    >>> weights = {"W_dec": np.eye(3, dtype=np.float32), "b_dec": np.ones(3, np.float32)}
    >>> decode(weights, np.array([[2, 0]]), np.array([[5.0, 0.0]], np.float32))
    array([[1., 1., 6.]])
    """
    out = np.tile(np.asarray(weights["b_dec"], np.float64), (len(indices), 1))
    for row in range(len(indices)):
        out[row] += np.asarray(values[row], np.float64) @ np.asarray(weights["W_dec"], np.float64)[indices[row]]
    return out


def completed(weights: Weights, x_hat: ArrayLike, x: ArrayLike, norm: str) -> NDArray[np.float64]:
    """A reconstruction f W_dec + b_dec [n, d_out] with what x [n, d_in] adds to it: size, mean and skip."""
    _, mean, size = normalise(x, norm)
    skip = np.asarray(x, np.float64) @ np.asarray(weights["W_skip"], np.float64).T if "W_skip" in weights else 0
    return np.asarray(x_hat, np.float64) * size + mean + skip


def steer(
    weights: Weights,
    x: NDArray[np.float32],
    f: NDArray[np.float64],
    features: NDArray[np.int64],
    norm: str = "none",
    /,
    *,
    scale: ArrayLike,
    shift: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    gate: ArrayLike = 1.0,
) -> NDArray[np.float64]:
    """One edit after another on x [b, t, d_in]; f [b, t, d_sae] are the kept features, `features` ids [b, e]."""
    y, size = np.asarray(x, np.float64).copy(), normalise(x, norm)[2]
    shape = features.shape
    scale, shift, low, high = (np.broadcast_to(np.asarray(v, np.float64), shape) for v in (scale, shift, low, high))
    gate = np.broadcast_to(np.asarray(gate, np.float64), (*x.shape[:2], shape[1]))
    for request in range(shape[0]):
        for e, feature in enumerate(features[request]):
            old = f[request, :, feature]
            new = np.clip(scale[request, e] * old + shift[request, e], low[request, e], high[request, e])
            delta = (gate[request, :, e] * (new - old))[:, None] * weights["W_dec"][feature]
            y[request] += size[request] * delta
    return y


def disagreement(expected: Matches, indices: NDArray[np.int64], values: NDArray[np.float32]) -> str | None:
    """What is wrong with sparse rows [n, w] that should hold these matches exactly, or None.

    >>> expected = token_choice(np.array([[5.0, 0.0, 3.0]]), 2)
    >>> disagreement(expected, np.array([[0, 1]]), np.array([[5.0, 3.0]], np.float32))
    '1 wrong matches, the first at row 0, feature 2'
    """
    z, actual = expected.z, np.zeros_like(expected.z)
    if len(indices) != len(z):
        return f"{len(indices)} rows, expected {len(z)}"
    if not np.isfinite(values).all():
        return "values that are not finite"
    if (np.diff(values, axis=1) > 0).any():
        return "a row that is not sorted by falling value"
    row, slot = np.nonzero(values > 0)
    feature = indices[row, slot]
    if len(set(zip(row.tolist(), feature.tolist(), strict=True))) != len(row):
        return "a feature twice in one row"
    actual[row, feature] = values[row, slot]
    top = np.maximum(z.max(axis=1, initial=0), 1e-30)[:, None]
    near = z <= _CUT_TOLERANCE * top  # they do not count, since relu cuts at 0
    for cut in expected.cuts:
        near |= np.abs(z - cut) <= _CUT_TOLERANCE * top
    wrong = ((actual > 0) != expected.kept) & ~near
    if wrong.any():
        where = np.argwhere(wrong)[0]
        return f"{wrong.sum()} wrong matches, the first at row {where[0]}, feature {where[1]}"
    error = np.where(actual > 0, np.abs(actual - z), 0) / top
    if error.max(initial=0) > _VALUE_TOLERANCE:
        return f"a value that is off by {error.max():.1e} of the largest in its row"
    return None


def difference(expected: NDArray[np.float64], actual: NDArray[np.float32]) -> str | None:
    """What is wrong with dense activations [..., d_in], or None where they agree within 1e-5 of the row's largest.

    >>> difference(np.ones((1, 2)), np.array([[1, 2]], np.float32))
    "a difference of 1.0e+00 of the row's largest value"
    """
    if expected.shape != actual.shape:
        return f"shape {actual.shape}, expected {expected.shape}"
    top = np.maximum(np.abs(expected).max(axis=-1, initial=0), 1e-30)[..., None]
    error = np.abs(expected - actual) / top
    if not (error <= _VALUE_TOLERANCE).all():
        return f"a difference of {error.max():.1e} of the row's largest value"
    return None


def _largest(z: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The `count` largest of every row; among equals the leftmost."""
    kept = np.zeros(z.shape, bool)
    order = np.argsort(-z, axis=1, kind="stable")[:, : max(count, 0)]
    np.put_along_axis(kept, order, True, axis=1)
    return kept


def _cut(z: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Midway between the smallest kept and the largest other value of every row, infinity where none is kept."""
    smallest: NDArray[np.float64] = np.where(kept, z, np.inf).min(axis=1, initial=np.inf)
    largest: NDArray[np.float64] = np.where(kept, 0, z).max(axis=1, initial=0)
    return np.add(smallest, largest) / 2
