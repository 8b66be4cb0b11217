"""The second witness: every graph's mathematics again, in plain float64 numpy, sharing no code with the graphs.

*Exact* means: the active set equals this one's except where a value lies within 1e-6 of the cut, and values agree
within 1e-5, both relative to the largest value of the row (floating-point sums differ in their last bits).
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
    """Latents z [n, d_sae], which of them are kept, and the cuts (broadcastable to z) that decided each of them."""

    z: NDArray[np.float64]
    kept: NDArray[np.bool_]
    cuts: tuple[NDArray[np.float64], ...]


def normalise(x: ArrayLike, norm: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """x' [..., d_in] of x, and each token's mean and size [..., 1]; see `manifest.Encoder`."""
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


def latents(weights: Weights, x: ArrayLike) -> NDArray[np.float64]:
    """relu((x' - b_pre) W_enc + b_enc) of x' [..., d_in]: [..., d_sae]."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    return np.maximum((np.asarray(x, np.float64) - w.get("b_pre", w["b_dec"])) @ w["W_enc"] + w["b_enc"], 0)


def token_choice(z: NDArray[np.float64], k: int) -> Matches:
    """The k largest of every row."""
    kept = _largest(z, k) & (z > 0)
    return Matches(z, kept, (_cut(z, kept)[:, None],))


def group_choice(z: NDArray[np.float64], k: int) -> Matches:
    """The largest of each of k runs of neighbours in every row."""
    runs = z.reshape(len(z), k, z.shape[1] // k)
    kept = np.zeros_like(runs, bool)
    np.put_along_axis(kept, runs.argmax(axis=2)[:, :, None], True, axis=2)
    kept &= runs > 0
    cut = _cut(runs.reshape(-1, runs.shape[2]), kept.reshape(-1, runs.shape[2])).reshape(len(z), k, 1)
    return Matches(z, kept.reshape(z.shape), (np.broadcast_to(cut, runs.shape).reshape(z.shape),))


def threshold(z: NDArray[np.float64], theta: ArrayLike) -> Matches:
    """Those above theta, a number or one per feature."""
    cut = np.broadcast_to(np.asarray(theta, np.float64), z.shape[1:])
    return Matches(z, z > cut, (cut,))


def joint(
    z: NDArray[np.float64],
    k: float,
    cap: NDArray[np.float64] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> Matches:
    """The round(k * valid rows) largest of the batch, with at most round(cap_i * valid rows) in column i."""
    valid = np.ones(len(z), bool) if valid is None else valid
    tokens = int(valid.sum())
    candidates = np.where(valid[:, None], z, 0)
    eligible = candidates > 0
    cuts = []
    if cap is not None:
        for feature in range(z.shape[1]):
            limit = int(np.rint(cap[feature] * tokens))
            eligible[:, feature] &= _largest(candidates[None, :, feature], limit)[0]
        cuts.append(_cut(candidates.T, eligible.T)[None, :])
        candidates = np.where(eligible, candidates, 0)
    kept = _largest(candidates.reshape(1, -1), int(np.rint(k * tokens))).reshape(z.shape) & eligible
    return Matches(z, kept, (*cuts, _cut(candidates.reshape(1, -1), kept.reshape(1, -1))))


def decode(weights: Weights, indices: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of values times decoder rows, plus b_dec: [n, d_out]."""
    out = np.tile(np.asarray(weights["b_dec"], np.float64), (len(indices), 1))
    for row in range(len(indices)):
        out[row] += np.asarray(values[row], np.float64) @ np.asarray(weights["W_dec"], np.float64)[indices[row]]
    return out


def completed(weights: Weights, x_hat: ArrayLike, x: ArrayLike, norm: str) -> NDArray[np.float64]:
    """A reconstruction f W_dec + b_dec [n, d_out] with all that x [n, d_in] adds to it."""
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
    """One edit after another on x [b, t, d_in], where f [b, t, d_sae] are the features as kept; ids [b, e]."""
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
    """What is wrong with sparse rows [n, w] that should hold these matches, or None if they do, exactly."""
    z, found = expected.z, np.zeros_like(expected.z)
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
    found[row, feature] = values[row, slot]
    top = np.maximum(z.max(axis=1, initial=0), 1e-30)[:, None]
    near = z <= _CUT_TOLERANCE * top  # of no account: relu cuts at 0
    for cut in expected.cuts:
        near |= np.abs(z - cut) <= _CUT_TOLERANCE * top
    wrong = ((found > 0) != expected.kept) & ~near
    if wrong.any():
        where = np.argwhere(wrong)[0]
        return f"{wrong.sum()} wrong matches, the first at row {where[0]}, feature {where[1]}"
    error = np.where(found > 0, np.abs(found - z), 0) / top
    if error.max(initial=0) > _VALUE_TOLERANCE:
        return f"a value that is off by {error.max():.1e} of the largest in its row"
    return None


def difference(expected: NDArray[np.float64], found: NDArray[np.float32]) -> str | None:
    """The same for dense activations [..., d_in]: None if they agree within 1e-5 of the largest value of the row."""
    if expected.shape != found.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    top = np.maximum(np.abs(expected).max(axis=-1, initial=0), 1e-30)[..., None]
    error = np.abs(expected - found) / top
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
