"""Which features are alike: by the directions that they write, and by the tokens that they are active on."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features

MOST = 10  # relatives of a feature
FEWEST = 3  # tokens of the sample that two features must share
_BLOCK = 1 << 10  # features that are compared with _OTHERS ones at once
_OTHERS = 1 << 13
_PAIRS = 1 << 22  # pairs of matches that are counted at once

Relatives = list[list[tuple[int, float]]]


def neighbours(decoder: NDArray[np.float32]) -> Relatives:
    """For each feature the others with the most similar decoder rows [d_sae, d_out], and the cosine, largest first.

    Rows of length 0 have no neighbours and are none. Blocks of rows are multiplied, so memory does not grow with d_sae
    squared. Cosines are rounded to 5 digits, and of equal ones the first feature is first.

    >>> neighbours(np.array([[1, 0], [1, 0], [0, 2]], np.float32))[0]
    [(1, 1.0), (2, 0.0)]
    """
    d_sae = len(decoder)
    norms = np.concatenate(
        [np.linalg.norm(np.asarray(decoder[at : at + _BLOCK]), axis=1) for at in range(0, d_sae, _BLOCK)]
    )

    def rows(begin: int, size: int) -> NDArray[np.float32]:
        part = np.asarray(decoder[begin : begin + size])
        lengths = norms[begin : begin + size].copy()
        lengths[lengths == 0] = 1
        return np.asarray(part / lengths[:, None], np.float32)

    found: Relatives = []
    for begin in range(0, d_sae, _BLOCK):
        these = rows(begin, _BLOCK)
        best = np.full((len(these), 0), 0.0, np.float32)
        ids = np.full((len(these), 0), 0, np.int64)
        for other in range(0, d_sae, _OTHERS):
            cosines = np.round(np.clip(these @ rows(other, _OTHERS).T, -1, 1), 5) + np.float32(0)  # no -0
            cosines[:, norms[other : other + _OTHERS] == 0] = -np.inf
            same = np.arange(max(begin, other), min(begin + len(these), other + cosines.shape[1]))
            cosines[same - begin, same - other] = -np.inf
            best = np.concatenate([best, cosines], axis=1)
            ids = np.concatenate(
                [ids, np.broadcast_to(np.arange(other, other + cosines.shape[1]), cosines.shape)], axis=1
            )
            best, ids = _largest(best, ids)
        for row, (values, others) in enumerate(zip(best.tolist(), ids.tolist(), strict=True)):
            pairs = [(other, value) for other, value in zip(others, values, strict=True) if value >= -1]
            found.append(pairs if norms[begin + row] > 0 else [])
    return found


def _largest(values: NDArray[np.float32], ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The MOST largest of each row, in falling order; of equal ones those with the smallest ids."""
    if values.shape[1] > MOST:
        cut = -np.partition(-values, MOST - 1, axis=1)[:, MOST - 1 : MOST]
        enough = values >= cut  # with all that are equal to the last
        width = int(enough.sum(axis=1).max())
        place = np.argsort(~enough, axis=1, kind="stable")[:, :width] if width < values.shape[1] else None
        if place is not None:
            values, ids = np.take_along_axis(values, place, 1), np.take_along_axis(ids, place, 1)
    order = np.lexsort((ids, -values), axis=1)[:, :MOST]
    return np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)


def together(sample: Features, d_sae: int) -> Relatives:
    """For each feature those that are active on the same tokens of a sample, and the phi correlation, largest first.

    Phi is Pearson's correlation of two yes-or-no variables (Yule 1912, "On the methods of measuring association between
    two attributes"): with n tokens, a and b of them where one and the other is active, and c where both are,
    phi = (n c - a b) / sqrt(a (n - a) b (n - b)). Pairs with fewer than FEWEST common tokens are left out, and so are
    negative correlations.
    """
    tokens, indptr, indices = len(sample), sample.indptr, sample.indices
    lengths = np.diff(indptr)
    row = np.repeat(np.arange(tokens), lengths)
    order = np.argsort(indices, kind="stable")
    counts = np.bincount(indices, minlength=d_sae)
    ends = np.concatenate([[0], np.cumsum(counts)])
    pairs = np.concatenate([[0], np.cumsum(lengths[row[order]])])  # before each match, by feature
    found: Relatives = []
    for low, high in _blocks(pairs[ends]):
        rows = row[order[ends[low] : ends[high]]]
        others = lengths[rows]
        at = np.repeat(indptr[rows] - (np.cumsum(others) - others), others) + np.arange(others.sum())
        feature = np.repeat(indices[order[ends[low] : ends[high]]].astype(np.int64), others)
        key, both = np.unique(feature * d_sae + indices[at], return_counts=True)
        found += _correlated(key, both, counts, tokens, low, high)
    return found


def _correlated(
    key: NDArray[np.int64], both: NDArray[np.int64], counts: NDArray[np.int64], tokens: int, low: int, high: int
) -> Iterator[list[tuple[int, float]]]:
    one, other = np.divmod(key, len(counts))
    a, b, c = counts[one].astype(np.float64), counts[other].astype(np.float64), both.astype(np.float64)
    apart = np.sqrt(a * (tokens - a) * b * (tokens - b))
    phi = np.divide(tokens * c - a * b, apart, out=np.zeros(len(key)), where=apart > 0)
    keep = np.flatnonzero((one != other) & (both >= FEWEST) & (phi > 0))
    keep = keep[np.lexsort((other[keep], -phi[keep], one[keep]))]
    ends = np.searchsorted(one[keep], np.arange(low, high + 1))
    for begin, end in zip(ends, ends[1:], strict=False):
        best = keep[begin : min(end, begin + MOST)]
        yield list(zip(other[best].tolist(), phi[best].tolist(), strict=True))


def _blocks(pairs: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of features of at most _PAIRS pairs, or of one feature; `pairs` counts those before each feature."""
    low, last = 0, len(pairs) - 1
    while low < last:
        high = max(int(np.searchsorted(pairs, pairs[low] + _PAIRS, side="right")) - 1, low + 1)
        yield low, min(high, last)
        low = min(high, last)
