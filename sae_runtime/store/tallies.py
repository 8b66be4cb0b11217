"""What is counted of each feature of a bucket, in any order of its matches: sums, histogram, top tokens."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from sae_runtime.store.matches import Matches, sorted_by

TOP_TOKENS = 10


class Tally:
    """Counts of the features from `low` to before `high`.

    Attributes:
        count: number of matches of each feature, int64.
        sum: of their values, float64.
        max: the largest value, float32; 0 without matches.
        histogram: matches in each of `bins` equal bins from 0 to max, int64 [features, bins]. A value on an edge is in
            the bin below, so the last bin has the largest value.
    """

    def __init__(self, low: int, high: int, bins: int) -> None:
        """Begin with nothing; first `add` takes all matches, then `add_to_histogram` takes them once more."""
        self._low, features = low, high - low
        self.count, self.sum = np.zeros(features, np.int64), np.zeros(features)
        self.max = np.zeros(features, np.float32)
        self.histogram = np.zeros((features, bins), np.int64)
        self._keys, self._counts, self._sums = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)

    def add(self, matches: Matches) -> None:
        """Add to the counts, sums, largest values and tokens."""
        feature, value = matches["feature"] - self._low, matches["value"].astype(np.float64)
        self.count += np.bincount(feature, minlength=len(self.count))
        self.sum += np.bincount(feature, value, minlength=len(self.count))
        np.maximum.at(self.max, feature, matches["value"])
        known = matches["token"] >= 0
        feature, token = feature[known], matches["token"][known]
        order = sorted_by(token, feature)
        keys = (feature[order].astype(np.int64) << 32) | token[order]
        self._merge(keys, np.ones(len(keys), np.int64), value[known][order])

    def add_to_histogram(self, matches: Matches) -> None:
        """Add to the histogram, when the largest values are known."""
        bins = self.histogram.shape[1]
        feature = matches["feature"] - self._low
        share = matches["value"].astype(np.float64) / self.max[feature]
        bin = np.clip(np.ceil(share * bins).astype(np.int64) - 1, 0, bins - 1)
        self.histogram += np.bincount(feature * bins + bin, minlength=self.histogram.size).reshape(-1, bins)

    def top_tokens(self) -> Iterator[list[tuple[int, int, float]]]:
        """Token, count and mean of the tokens of each feature with the largest sums of values, largest first.

        The order of our design: a token ranks high if the feature is often active on it, and if it is so strongly.
        Of equal sums the smaller id is first.
        """
        feature, token = self._keys >> 32, self._keys & 0xFFFFFFFF
        order = sorted_by(~self._sums.view(np.uint64), feature)  # by token already
        ends = np.searchsorted(feature[order], np.arange(len(self.count) + 1))
        for begin, end in zip(ends, ends[1:], strict=False):
            best = order[begin : min(end, begin + TOP_TOKENS)]
            means = self._sums[best] / self._counts[best]
            yield list(zip(token[best].tolist(), self._counts[best].tolist(), means.tolist(), strict=True))

    def _merge(self, keys: NDArray[np.int64], counts: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        """Add the counts and sums of keys that ascend."""
        if len(self._keys):
            keys = np.concatenate([self._keys, keys])
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            counts = np.concatenate([self._counts, counts])[order]
            sums = np.concatenate([self._sums, sums])[order]
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        if len(begins):
            self._keys, self._counts = keys[begins], np.add.reduceat(counts, begins)
            self._sums = np.add.reduceat(sums, begins)


def tallied(chunks: Iterable[Matches], low: int, high: int, bins: int) -> Tally:
    """The counts of all matches that an iterable gives; it is gone through twice."""
    tally = Tally(low, high, bins)
    for matches in chunks:
        tally.add(matches)
    for matches in chunks:
        tally.add_to_histogram(matches)
    return tally
