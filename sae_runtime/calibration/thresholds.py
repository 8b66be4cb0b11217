"""The threshold of each feature, from pre-activations in blocks of features.

Training makes the blocks with torch, `calibrate_bundle` with numpy.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.parts import CONTEXT, divide_at
from sae_runtime.activations.stored import Activations
from sae_runtime.bundle import quota

Array = NDArray[np.float32]
_ROWS = 1 << 17  # largest number of rows in a part; more rows make no figure more precise
_ROUNDING = 3e-6  # of a feature's largest z: by no more do two programs differ in a product of float32
_NEAR = 2e-7  # of a value of z: by so much they often differ
_PART_ELEMENTS = 1 << 26  # numbers of activations that are in memory at once
_HELD_OUT = 0.25  # share of the rows that measures the threshold that the others fit


def thresholds(blocks: Iterable[Array], tokens: int, k: float, max_density: NDArray[np.float64] | None = None) -> Array:
    """The threshold of each feature, float32 [d_sae], finite and >= 0 (our design).

    A feature is active if z > threshold. Mutual choice gets one common threshold, which brings the mean L0 to k. Under
    feature choice a feature gets the larger of the common threshold and the feature's own limit: the quantile of z
    above which its density is max_density. The common threshold does not silence features with small values: the
    threshold is low enough that the feature keeps a density of max_density / 30.

    Each threshold is midway between two neighbouring values of z that differ by more than rounding, as far as there
    are such near it: values that repeated rows give would else be active in one batch and not in another. Equal values
    at a feature's limit are all below the threshold, so that no density is above max_density; then nothing may be
    active. The common threshold goes to that side of equal values on which the mean L0 is nearer to k, and where both
    are as near, above them.

    Args:
        blocks: pre-activations z >= 0 of runs of features, in the order of the features: float32 [features, n].
        tokens: the first of the n tokens, which the common threshold is fitted to; the limits are fitted to all n.
        k: wanted mean L0.
        max_density: the largest density of each feature, float64 [d_sae], for feature choice.

    >>> z = np.array([[0.0, 4.0, 3.0], [1.0, 0.0, 2.0]], np.float32)
    >>> thresholds([z], tokens=3, k=1.0)  # of four positive values, three are active
    array([1.5, 1.5], dtype=float32)
    """
    wanted, always, start = max(quota.total_matches(k, tokens), 1), 0, 0
    low: list[float] = []  # the least threshold of each feature
    high: list[float] = []  # the largest one
    pool = np.empty(0, np.float32)  # the largest z between low and high; the common threshold is among them
    rounding = 0.0
    for z in blocks:
        rounding = max(rounding, _rounding(z))
        if max_density is None:
            low += [0.0] * len(z)
            high += [np.inf] * len(z)
            fitted = z[:, :tokens]
            values = [fitted[fitted > (pool.min() if len(pool) > wanted else 0)]]
        else:
            density = max_density[start : start + len(z)]
            limits, least = (quota.tokens_per_feature(d, z.shape[1]) for d in (density, density * quota.LEAST))
            values = []
            for row, limit, fewest in zip(z, limits, least, strict=True):
                positive = row[row > 0]
                low.append(_cut(positive, int(limit), _rounding(row), at_most=True))
                high.append(max(_cut(positive, int(fewest), _rounding(row)), low[-1]) if fewest else np.inf)
                positive = row[:tokens][row[:tokens] > 0]
                always += int((positive > np.float64(high[-1])).sum())
                values.append(positive[(positive > np.float64(low[-1])) & (positive <= np.float64(high[-1]))])
        start += len(z)
        pool = _largest(np.concatenate([pool, *values]), wanted + 1, 4 * rounding)
    common = _cut(pool, max(wanted - always, 1), rounding)
    threshold: Array = np.minimum(np.maximum(low, common), high).astype(np.float32)
    return threshold


def slots_for(l0: NDArray[np.int64], d_sae: int) -> int:
    """Slots of encode.onnx: a multiple of 8 that holds 999 of 1000 tokens; the runtime encodes the others again.

    >>> slots_for(np.array([3, 5, 9]), d_sae=100)
    16
    """
    return min(max(math.ceil(float(np.quantile(l0, 0.999)) / 8 + 1e-9) * 8, 8), d_sae)


class CalibrationRows(NamedTuple):
    """Numbers of the rows that fit and of the rows that measure, and how many rows lie in the gap between them."""

    fitting: NDArray[np.int64]
    measuring: NDArray[np.int64]
    gaps: int


def calibration_rows(
    activations: Activations, rows: NDArray[np.int64] | None = None, *, elements: int = _PART_ELEMENTS
) -> CalibrationRows:
    """Divide rows into those that fit a threshold and those that measure it, the last quarter.

    A document is cut where no document ends near the last quarter, with a gap of one window of the model.

    Args:
        activations: they have the rows.
        rows: the numbers of the rows to divide, ascending; None means all.
        elements: largest number of values in a part. A larger part is thinned out to rows at equal distances.

    Raises:
        ValueError: there are too few rows.

    >>> from sae_runtime import open_activations
    >>> [len(part) for part in calibration_rows(open_activations(activations_path))[:2]]
    [450, 150]
    """
    if rows is None:
        rows = np.arange(len(activations))
    documents = None if activations.documents is None else activations.documents[rows]
    gap = 0 if documents is None else activations.context or CONTEXT
    parts = divide_at(documents, len(rows), _HELD_OUT, gap=gap)
    if parts is None or min(map(len, parts)) < 2:  # one token has no variance
        apart = f" with a gap of {gap} rows in a document" if gap else ""
        raise ValueError(
            f"{activations.path} has {len(rows)} rows, too few to fit a threshold on three quarters and to measure it "
            f"on the rest{apart}; give {max(12 * gap, 8):,} rows or more"
        )
    largest = min(_ROWS, max(elements // activations.d_in, 2))
    fitting, measuring = (rows[part[_spread(len(part), largest)]] for part in parts)
    return CalibrationRows(fitting, measuring, len(rows) - sum(map(len, parts)))


def _rounding(z: Array) -> float:
    """How far two programs may differ in a value of z, since each has its own order of summation."""
    return _ROUNDING * float(z.max(initial=0))


def _cut(values: Array, wanted: int, rounding: float, *, at_most: bool = False) -> float:
    """A threshold that `wanted` of the positive values exceed, or as near to that as equal values allow.

    Of all places between two different values it is the one with the smallest sum of two numbers: how far the count of
    larger values is from `wanted`, and how many values are so near that rounding could carry them over. So among equal
    values it goes to their end, and among many different ones it stays where it is.

    Args:
        values: positive, in any order.
        wanted: number of values above the threshold; at least all of them gives 0.
        rounding: by which a value may differ.
        at_most: never more values than `wanted`.
    """
    n, wanted = len(values), min(wanted, len(values))
    if n == 0:
        return 0.0
    below, above = np.float32(0), np.float32(np.inf)
    if wanted < n:
        below = np.partition(values, n - wanted - 1)[n - wanted - 1]
    if wanted:
        above = np.partition(values, n - wanted)[n - wanted]
    place = _between(below, above, rounding)
    near = np.sort(values[np.abs(values - np.float32(place)) <= max(rounding, _NEAR * place)])
    at_risk = int(_at_risk(near, np.array([place]), rounding)[0])
    if below < above and at_risk == 0:
        return place
    reach = len(near) + int(np.count_nonzero(values == below))
    first, last = max(wanted - 2 * reach - 1, 0), min(wanted + 2 * reach + 1, n)  # the best place lies between these
    near = np.sort(np.partition(values, (n - last, n - first - 1))[n - last : n - first])
    edges = np.concatenate([[0.0] if last == n else [], near, [np.inf] if first == 0 else []]).astype(np.float32)
    places = np.array([_between(below, above, rounding) for below, above in itertools.pairwise(edges)])
    counts = first + len(near) - np.arange(len(places)) - (last != n)
    cost = np.abs(counts - wanted) + _at_risk(near, places, rounding).astype(np.float64)
    cost[(edges[1:] == edges[:-1]) | (at_most & (counts > wanted))] = np.inf
    return float(places[len(places) - 1 - int(np.argmin(cost[::-1]))])


def _at_risk(ascending: Array, places: NDArray[np.float64], rounding: float) -> NDArray[np.int64]:
    """How many values rounding could carry over each place.

    A value on either side may be within the largest rounding, because among many different values some are. If there
    are more, they are equal but for rounding.
    """

    def within(reach: float | NDArray[np.float64]) -> NDArray[np.int64]:
        return np.searchsorted(ascending, places + reach, "right") - np.searchsorted(ascending, places - reach)

    return np.maximum(within(rounding) - 2, within(_NEAR * places))


def _between(below: np.float32, above: np.float32, rounding: float) -> float:
    """A float32 number t with below <= t < above: the middle, but 0 above 0, and a little above the largest value."""
    if below == 0:
        return 0.0
    if np.isinf(above):
        return float(min(np.nextafter(np.float32(below + 2 * rounding), above), np.finfo(np.float32).max))
    middle = np.float32((np.float64(below) + np.float64(above)) / 2)
    return float(middle if middle < above else below)


def _largest(values: Array, count: int, rounding: float) -> Array:
    """The largest values, those that equal the least of them but for rounding, and the next one."""
    if len(values) <= count:
        return values
    least = float(np.partition(values, len(values) - count)[len(values) - count])
    count = min(int(np.count_nonzero(values >= least - rounding)) + 1, len(values))
    return np.partition(values, len(values) - count)[len(values) - count :]


def _spread(rows: int, largest: int) -> NDArray[np.int64]:
    return np.linspace(0, rows - 1, min(rows, largest)).astype(np.int64)
