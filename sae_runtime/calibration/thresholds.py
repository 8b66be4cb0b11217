"""The threshold of each feature, from pre-activations in blocks of features.

Training makes the blocks with torch, `calibrate_bundle` with numpy.
"""

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
_PART_ELEMENTS = 1 << 26  # numbers of activations that are in memory at once
_HELD_OUT = 0.25  # share of the rows that measures the threshold that the others fit


def thresholds(blocks: Iterable[Array], tokens: int, k: float, max_density: NDArray[np.float64] | None = None) -> Array:
    """The threshold of each feature, float32 [d_sae], finite and >= 0 (our design).

    A feature is active if z > threshold. Mutual choice gets one common threshold, which brings the mean L0 to k. Under
    feature choice a feature gets the larger of the common threshold and the feature's own limit: the quantile of z
    above which its density is max_density. The common threshold does not silence features with small values: the
    threshold is low enough that the feature keeps a density of max_density / 30. Each threshold is midway between two
    neighbouring values of z.

    Args:
        blocks: pre-activations z >= 0 of runs of features, in the order of the features: float32 [features, tokens].
        tokens: number of tokens.
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
    for z in blocks:
        if max_density is None:
            low += [0.0] * len(z)
            high += [np.inf] * len(z)
            values = [z[z > (pool.min() if len(pool) > wanted else 0)]]
        else:
            density = max_density[start : start + len(z)]
            limits, least = (quota.tokens_per_feature(d, tokens) for d in (density, density * quota.LEAST))
            values = []
            for row, limit, fewest in zip(z, limits, least, strict=True):
                positive = row[row > 0]
                low.append(_quantile(positive, int(limit)))
                high.append(_quantile(positive, int(fewest)) if fewest else np.inf)
                always += int((positive > np.float64(high[-1])).sum())
                values.append(positive[(positive > np.float64(low[-1])) & (positive <= np.float64(high[-1]))])
        start += len(z)
        pool = _largest(np.concatenate([pool, *values]), wanted + 1)
    wanted = max(wanted - always, 1)
    pool = _largest(pool, wanted + 1)
    # If no more values are positive than wanted, all of them are active.
    common = float(np.partition(pool, 1)[:2].mean(dtype=np.float64)) if len(pool) > wanted else 0.0
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


def _quantile(positive: Array, limit: int) -> float:
    """The middle of the limit-th largest value and the next one; 0 if there is no next one."""
    if len(positive) <= limit:
        return 0.0
    beyond = len(positive) - limit - 1
    if limit == 0:  # no value exceeds the largest one
        return float(positive.max())
    return float(np.partition(positive, (beyond, beyond + 1))[beyond : beyond + 2].mean(dtype=np.float64))


def _largest(values: Array, count: int) -> Array:
    return values if len(values) <= count else np.partition(values, len(values) - count)[-count:]


def _spread(rows: int, largest: int) -> NDArray[np.int64]:
    return np.linspace(0, rows - 1, min(rows, largest)).astype(np.int64)
