"""Which matches of each feature become contexts, and the quantile bands that they are chosen from.

The matches of a feature, by falling value, are cut into bands of equal numbers of matches: with Q bands and n matches,
the match of rank r is in band r Q // n. Two matches are the same text if the tokens of the peaks and of their
surroundings are equal. In a band, the largest match of each text is considered, by falling value, until the band's
slots are full. It is taken unless a context of the feature was taken before, from this band or a higher one, that is
the same text or whose peak is in the same document less than half a context away.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_runtime.store.matches import Matches
from sae_runtime.store.rows import Rows

_MIXING = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _GROWTH = 64, 8  # candidates of a band that are looked at first, and how many more each time after


class Chosen:
    """The contexts of the features from `low` to before `high`, in slots by band.

    Attributes:
        row: the peak of each slot, int64 [features, slots]; -1: empty.
        value: its activation, float32.
        band: the band of each slot, int64 [slots].
        edges: smallest and largest value of each band, float32 [features, bands, 2].
        sizes: matches of each band, int64 [features, bands].
    """

    def __init__(self, low: int, counts: NDArray[np.int64], per_band: Sequence[int], apart: int) -> None:
        """Begin with empty slots.

        Args:
            low: the first feature.
            counts: matches of each feature.
            per_band: slots of each band, the top band first.
            apart: rows that two peaks of a document must be apart.
        """
        bands = len(per_band)
        self._low, self._counts, self._apart = low, counts, apart
        self.band = np.repeat(np.arange(bands), per_band)
        self.slots = np.concatenate([[0], np.cumsum(per_band)])
        shape = (len(counts), len(self.band))
        self.row, self.value = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
        self._near, self._run = np.zeros(shape, np.uint64), np.full(shape, -1, np.int64)
        self._filled = np.zeros((len(counts), bands), np.int64)
        self._given = np.zeros(len(counts), np.int64)  # matches of each feature so far
        self._considered = np.zeros(0, np.uint64)  # texts of bands that are not full
        starts = -(-np.arange(bands + 1) * counts[:, None] // bands)
        self._starts, self.sizes = starts[:, :-1], np.diff(starts, axis=1)
        self.edges = np.zeros((len(counts), bands, 2), np.float32)

    def add(self, matches: Matches, rows: Rows) -> None:
        """Choose from matches that go on, by feature, then by falling value, where those before ended."""
        feature = matches["feature"] - self._low
        counts = np.bincount(feature, minlength=len(self._counts))
        rank = np.arange(len(matches)) - np.repeat(np.cumsum(counts) - counts - self._given, counts)
        self._given += counts
        band = rank * len(self.slots[1:]) // self._counts[feature]
        place = rank - self._starts[feature, band]
        last = place == self.sizes[feature, band] - 1
        self.edges[feature[place == 0], band[place == 0], 1] = matches["value"][place == 0]
        self.edges[feature[last], band[last], 0] = matches["value"][last]
        begins = np.flatnonzero(np.diff(feature * len(self.sizes[0]) + band, prepend=-1))
        place -= np.repeat(place[begins], np.diff(np.append(begins, len(place))))  # among these matches
        for number, room in enumerate(np.diff(self.slots)):
            left, begin, end = np.flatnonzero(band == number), 0, _FIRST
            while True:
                left = left[(self._filled[feature[left], number] < room) & (place[left] >= begin)]
                if not len(left):
                    break
                now = left[place[left] < end]
                self._take(number, feature[now], matches[now], rows)
                begin, end = end, end * _GROWTH

    def _take(self, band: int, feature: NDArray[np.int64], matches: Matches, rows: Rows) -> None:
        """Fill slots of a band from candidates, which come by feature, then by falling value."""
        near = rows.near[matches["row"]]
        text = near ^ ((feature * len(self.sizes[0]) + band).astype(np.uint64) * _MIXING)  # in its band of its feature
        first = np.sort(np.unique(text, return_index=True)[1])
        first = first[~np.isin(text[first], self._considered)]
        feature, near, text = feature[first], near[first], text[first]
        row, value = matches["row"][first], matches["value"][first]
        run = rows.run(row)
        low, room = self.slots[band], self.slots[band + 1] - self.slots[band]
        at = np.flatnonzero(np.diff(feature, prepend=-1))  # the next candidate of each feature
        ends = np.append(at[1:], len(feature))
        while len(at):
            f = feature[at]
            close = (self._run[f] == run[at, None]) & (np.abs(self.row[f] - row[at, None]) < self._apart)
            same = close | (self._near[f] == near[at, None])
            taken = ~(same & (self.row[f] >= 0)).any(axis=1)
            new, of = at[taken], f[taken]
            slot = low + self._filled[of, band]
            self.row[of, slot], self.value[of, slot] = row[new], value[new]
            self._near[of, slot], self._run[of, slot] = near[new], run[new]
            self._filled[of, band] += 1
            go_on = (self._filled[f, band] < room) & (at + 1 < ends)
            at, ends = at[go_on] + 1, ends[go_on]
        self._considered = np.concatenate([self._considered, text[self._filled[feature, band] < room]])


def choose(
    pieces: Iterable[Matches], rows: Rows, low: int, counts: NDArray[np.int64], per_band: Sequence[int], apart: int
) -> Chosen:
    """The contexts of the features from `low` on, from all their matches by feature, then by falling value."""
    chosen = Chosen(low, counts, per_band, apart)
    for matches in pieces:
        chosen.add(matches, rows)
    return chosen
