"""The witness: the mathematics of every graph in float64 numpy. It shares no code with the graphs.

A graph agrees with the witness where both give the same features with the same values. Values may differ by 1e-5 of
the row's largest value, since sums differ in their last bits. A feature within 1e-6 of the cut may be active in one
of them only. Where the terms of a sum are far larger than all of the row's values, float32 loses more: see `rounding`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle.manifest import Architecture

Weights = Mapping[str, NDArray[np.float32]]
_CUT_TOLERANCE = 1e-6
_VALUE_TOLERANCE = 1e-5
_ROUNDING = 2e-6


@dataclass(frozen=True)
class Matches:
    """Which pre-activations are matches.

    Attributes:
        z: all pre-activations [n, d_sae].
        kept: which of them are matches [n, d_sae].
        cuts: the numbers that decide it, broadcastable to z.
    """

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


def pre_activations(weights: Weights, x: ArrayLike, norm: str = "none") -> NDArray[np.float64]:
    """The pre-activations relu((x' - b_pre) W_enc + b_enc) [..., d_sae] of x [..., d_in]."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    return np.maximum((normalise(x, norm)[0] - w.get("b_pre", w["b_dec"])) @ w["W_enc"] + w["b_enc"], 0)


def rounding(weights: Weights, x: ArrayLike, norm: str = "none") -> NDArray[np.float64]:
    """What float32 may lose of each pre-activation [..., d_sae] of x [..., d_in]: 2e-6 of its terms' sizes, added up.

    The terms are the products of x' - b_pre with W_enc, and b_enc. docs/reference/certified-encoding.md derives the
    number. A norm adds the numbers that it subtracts, in units of the token's size.
    """
    w = {name: np.abs(np.asarray(value, np.float64)) for name, value in weights.items()}
    given, mean, size = normalise(x, norm)
    terms = np.abs(given - np.asarray(weights.get("b_pre", weights["b_dec"]), np.float64))
    if norm != "none":
        unit = size + 1e-5 * (norm == "layer")
        terms = terms + (np.abs(np.asarray(x, np.float64)) + np.abs(mean)) / np.where(unit > 0, unit, 1)
    return np.asarray(_ROUNDING * (terms @ w["W_enc"] + w["b_enc"]))


def decode_rounding(weights: Weights, indices: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """What float32 may lose of `decode` [n, d_out]: 2e-6 of its terms' sizes, added up."""
    sizes = {name: np.abs(weights[name]) for name in ("W_dec", "b_dec")}
    return _ROUNDING * decode(sizes, indices, np.abs(values))


def served(architecture: Architecture, weights: Weights, z: NDArray[np.float64]) -> Matches:
    """The matches of pre-activations z [n, d_sae] by the served rule of an architecture."""
    if architecture.k is None:
        return threshold(z, weights["threshold"])
    return (group_choice if architecture.selection == "groupmax" else token_choice)(z, architecture.k)


def token_choice(z: NDArray[np.float64], k: int) -> Matches:
    """The k largest positive numbers of every row (TopK).

    >>> token_choice(np.array([[5.0, 0.0, 3.0, 1.0]]), 2).kept
    array([[ True, False,  True, False]])
    """
    kept = _largest(z, k) & (z > 0)
    return Matches(z, kept, (_cut(z, kept)[:, None],))


def group_choice(z: NDArray[np.float64], k: int) -> Matches:
    """The largest of each of k runs of neighbours in every row, where it is positive.

    >>> group_choice(np.array([[5.0, 6.0, 3.0, 1.0]]), 2).kept
    array([[False,  True,  True, False]])
    """
    size = z.shape[1] // k
    runs = token_choice(z.reshape(len(z) * k, size), 1)
    return Matches(z, runs.kept.reshape(z.shape), (np.repeat(runs.cuts[0], size, axis=1).reshape(z.shape),))


def threshold(z: NDArray[np.float64], threshold: ArrayLike) -> Matches:
    """The pre-activations above the threshold, which is one number or one number for each feature.

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
    """The round(k * valid rows) largest of the batch, with at most round(max_density_i * valid rows) in column i.

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
        eligible &= _largest(candidates.T, np.rint(max_density * tokens)[:, None]).T
        cuts.append(_cut(candidates.T, eligible.T)[None, :])
        candidates = np.where(eligible, candidates, 0)
    kept = _largest(candidates.reshape(1, -1), int(np.rint(k * tokens))).reshape(z.shape) & eligible
    return Matches(z, kept, (*cuts, _cut(candidates.reshape(1, -1), kept.reshape(1, -1))))


def decode(weights: Weights, indices: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The reconstruction [n, d_out] of sparse rows [n, w]: the sum of values times rows of W_dec, plus b_dec.

    >>> weights = {"W_dec": np.eye(3, dtype=np.float32), "b_dec": np.ones(3, np.float32)}
    >>> decode(weights, np.array([[2, 0]]), np.array([[5.0, 0.0]], np.float32))
    array([[1., 1., 6.]])
    """
    rows = np.asarray(weights["W_dec"], np.float64)[indices]
    return np.asarray(np.einsum("nw,nwd->nd", values, rows) + weights["b_dec"])


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
    """The activations x [b, t, d_in] with edits of the features, ids [b, e]; f [b, t, d_sae] are the active features.

    scale, shift, low and high are broadcastable to [b, e], and gate to [b, t, e].
    """
    factor, added, least, most = (
        np.broadcast_to(np.asarray(edit, np.float64), features.shape)[:, None] for edit in (scale, shift, low, high)
    )
    old = np.take_along_axis(f, features[:, None], axis=2)
    delta = np.asarray(gate, np.float64) * (np.clip(factor * old + added, least, most) - old)
    rows = np.asarray(weights["W_dec"], np.float64)[features]
    return np.asarray(x + normalise(x, norm)[2] * np.einsum("bte,bed->btd", delta, rows))


def disagreement(
    expected: Matches, indices: NDArray[np.int64], values: NDArray[np.float32], lost: ArrayLike = 0.0
) -> str | None:
    """The fault of sparse rows [n, w] that should hold these matches, or None where they agree.

    `lost` is what float32 may lose of each pre-activation, broadcastable to z [n, d_sae], as `rounding` gives it.

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
    lost = np.broadcast_to(np.asarray(lost, np.float64), z.shape)
    # The other feature at a cut by top k may have lost as much as any feature of the row.
    apart = np.maximum(_CUT_TOLERANCE * top, lost.max(axis=1, keepdims=True, initial=0))
    near = z <= apart  # relu cuts at 0
    for cut in expected.cuts:
        near |= np.abs(z - cut) <= apart
    wrong = ((actual > 0) != expected.kept) & ~near
    if wrong.any():
        where = np.argwhere(wrong)[0]
        return f"{wrong.sum()} wrong matches, the first at row {where[0]}, feature {where[1]}"
    error = np.where(actual > 0, np.abs(actual - z), 0)
    if (error > np.maximum(_VALUE_TOLERANCE * top, lost)).any():
        return f"a value that is off by {(error / top).max():.1e} of the largest in its row"
    return None


def difference(expected: NDArray[np.float64], actual: NDArray[np.float32], lost: ArrayLike = 0.0) -> str | None:
    """The fault of dense activations [..., d_in], or None where they agree within 1e-5 of the row's largest value.

    `lost` is what float32 may lose of each number, broadcastable, as `decode_rounding` gives it.

    >>> difference(np.ones((1, 2)), np.array([[1, 2]], np.float32))
    "a difference of 1.0e+00 of the row's largest value"
    """
    if expected.shape != actual.shape:
        return f"shape {actual.shape}, expected {expected.shape}"
    top = np.maximum(np.abs(expected).max(axis=-1, initial=0), 1e-30)[..., None]
    error = np.abs(expected - actual)
    if not (error <= np.maximum(_VALUE_TOLERANCE * top, lost)).all():  # NaN is not
        return f"a difference of {(error / top).max():.1e} of the row's largest value"
    return None


def largest_error(expected: ArrayLike, actual: ArrayLike) -> float:
    """The largest difference of two arrays of one shape, relative to the largest number expected; 0 without numbers.

    >>> largest_error([1, -4], [1, -3])
    0.25
    """
    expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    largest = np.abs(expected).max(initial=0)
    return float(np.abs(expected - actual).max(initial=0) / max(largest, 1e-30))


def _largest(z: NDArray[np.float64], count: ArrayLike) -> NDArray[np.bool_]:
    """The `count` largest of every row, count broadcastable to [rows, 1]; among equals the leftmost."""
    return np.asarray(np.argsort(np.argsort(-z, axis=1, kind="stable"), axis=1) < np.asarray(count))


def _cut(z: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Midway between the smallest kept and the largest other value of every row, infinity where none is kept."""
    smallest: NDArray[np.float64] = np.where(kept, z, np.inf).min(axis=1, initial=np.inf)
    largest: NDArray[np.float64] = np.where(kept, 0, z).max(axis=1, initial=0)
    return np.add(smallest, largest) / 2
