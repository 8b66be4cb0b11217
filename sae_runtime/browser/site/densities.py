"""The densities of an SAE's features as curves: by rank, and as a histogram of their logarithms."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.browser.site.shown import shorts

POINTS = 400  # of a curve
_BINS = 40


def by_rank(density: NDArray[np.float64]) -> dict[str, list[Any]]:
    """The densities above 0 in falling order, at ranks that are even on a log axis.

    >>> by_rank(np.array([0.1, 0.0, 0.4]))
    {'rank': [1, 2], 'value': [0.4, 0.1]}
    """
    falling = np.sort(density[density > 0])[::-1]
    ranks = ranks_of(len(falling))
    return {"rank": ranks.tolist(), "value": shorts(falling[ranks - 1].tolist())}


def ranks_of(count: int) -> NDArray[np.int64]:
    """At most POINTS ranks from 1 to a count, even on a log axis.

    >>> ranks_of(3).tolist(), len(ranks_of(100_000)) <= POINTS
    ([1, 2, 3], True)
    """
    return np.unique(np.geomspace(1, count, POINTS).round().astype(np.int64)) if count else np.zeros(0, np.int64)


def histogram(density: NDArray[np.float64]) -> dict[str, list[Any]]:
    """The features above density 0 in equal bins of log10 density.

    >>> histogram(np.array([0.0]))
    {'edges': [], 'counts': []}
    """
    active = density[density > 0]
    if not len(active):
        return {"edges": [], "counts": []}
    counts, edges = np.histogram(np.log10(active), _BINS)
    return {"edges": shorts(edges.tolist()), "counts": counts.tolist()}
