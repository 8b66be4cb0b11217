"""The cut of the batch rule where the candidates are too many for memory: they come part by part, several times.

`batch_rule.cut` holds all candidates and sorts them. Here nothing grows with the number of tokens. The bits of positive
floats are ordered like the floats, so the m-th largest value of a column is found a few bits at a time: a pass counts
the candidates of each column by their next bits, and tells these bits of the value that is looked for. A last pass
finds where the candidates that equal this value fill the column. Feature choice does this for all features at once, and
the total matches are the column of all candidates that are left.

What stays is a few numbers for each column, by which every part can be cut alone afterwards:

>>> from sae_runtime.core.features import from_slots
>>> parts = [from_slots([(np.array([[0, 1]]), np.array([row], np.float32))], 2, (1,)) for row in ([5, 3], [4, 4])]
>>> kept = cut_by_parts(lambda: parts, 2, total=2, limit=None)
>>> [kept.matches(token, part).indices.tolist() for token, part in enumerate(parts)], kept.bound.tolist()
([[0], [0]], [4.0])
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features

Parts = Callable[[], Iterable[Features]]
"""Gives the candidates anew: the features of consecutive tokens, part by part, each of shape (n,)."""

_Listed = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""Candidates by token, then by feature: the column, the value and the place of each, token * d_sae + feature."""

_LARGEST = np.finfo(np.float32).max
_COUNTS = 1 << 22  # that a pass holds at most, in 32 MB
_MOST_BITS = 16  # of a pass, so that the counts of one column stay in the cache


@dataclass(frozen=True)
class Kept:
    """What stays of each column: the candidates above a bound, and those that equal it up to a place.

    Attributes:
        bound: f32 [columns]; 0: all candidates stay.
        last: the place of the last one that equals the bound and stays, int64 [columns]; -1: none.
    """

    bound: NDArray[np.float32]
    last: NDArray[np.int64]

    def mask(self, listed: _Listed) -> NDArray[np.bool_]:
        """Whether each candidate stays."""
        column, value, place = listed
        bound = self.bound[column]
        mask: NDArray[np.bool_] = value > bound
        mask |= (value == bound) & (place <= self.last[column])
        return mask


@dataclass(frozen=True)
class Cut:
    """What the batch rule keeps of candidates.

    Attributes:
        columns: of each feature, with limits; None: without.
        common: of what the limits leave, as one column.
    """

    columns: Kept | None
    common: Kept

    @property
    def bound(self) -> NDArray[np.float32]:
        """The bound that `batch_rule.cut` gives: f32 [1], or [d_sae] with limits."""
        return self.common.bound if self.columns is None else np.maximum(self.columns.bound, self.common.bound)

    def matches(self, begin: int, candidates: Features) -> Features:
        """The matches among the candidates of consecutive tokens, the first of which is token number `begin`."""
        column, value, place = _listed(begin, candidates)
        mask = self.common.mask((np.zeros_like(column), value, place))
        if self.columns is not None:
            mask &= self.columns.mask((column, value, place))
        return candidates.filter(mask)


def cut_by_parts(parts: Parts, d_sae: int, *, total: int, limit: NDArray[np.int64] | None) -> Cut:
    """What `batch_rule.cut` keeps of the candidates of all parts together.

    Args:
        parts: is called some ten times, and gives the same candidates each time.
        d_sae: number of features.
        total: M.
        limit: m_i, int64 [d_sae], for feature choice.
    """

    def listed() -> Iterator[_Listed]:
        begin = 0
        for candidates in parts():
            yield _listed(begin, candidates)
            begin += len(candidates)

    columns = None if limit is None else _kept(listed, limit)

    def left() -> Iterator[_Listed]:
        for one in listed():
            mask = slice(None) if columns is None else columns.mask(one)
            value, place = one[1][mask], one[2][mask]
            yield np.zeros(len(value), np.int64), value, place

    return Cut(columns, _kept(left, np.array([total])))


def _listed(begin: int, candidates: Features) -> _Listed:
    token = np.repeat(np.arange(begin, begin + len(candidates)), np.diff(candidates.indptr))
    column = candidates.indices.astype(np.int64)
    return column, candidates.values, token * candidates.d_sae + column


def _kept(listed: Callable[[], Iterator[_Listed]], most: NDArray[np.int64]) -> Kept:
    """The largest candidates of each column, as many as `most` [columns] says; among equal ones, the first."""
    bound, room = _smallest(listed, most)
    last, left = np.full(len(most), -1), room
    for column, value, place in listed():
        ties = np.flatnonzero((value == bound[column]) & (left[column] > 0))
        ties = ties[np.argsort(column[ties], kind="stable")]
        column, place = column[ties], place[ties]
        rank = np.arange(1, len(ties) + 1) - np.searchsorted(column, column)
        fills = rank == left[column]
        last[column[fills]] = place[fills]
        left = np.maximum(left - np.bincount(column, minlength=len(most)), 0)
    return Kept(bound, last)


def _smallest(
    listed: Callable[[], Iterator[_Listed]], most: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The most[i]-th largest value of each column i, and how many that equal it are among the most[i] largest.

    The value is 0 where there are fewer candidates, and the largest number where most[i] is 0.
    """
    columns = len(most)
    width = min(_MOST_BITS, max(1, (_COUNTS // max(columns, 1)).bit_length() - 1))
    known, room, fewer = np.zeros(columns, np.int64), most.copy(), np.zeros(columns, bool)
    for shift in range(32 - width, -width, -width):
        low, step = max(shift, 0), width + min(shift, 0)
        counts = np.zeros(columns << step, np.int64)
        for column, value, _ in listed():
            bits = value.view(np.uint32).astype(np.int64)
            inside = np.flatnonzero(bits >> (low + step) == known[column])
            key = (column[inside] << step) | (bits[inside] >> low) & ((1 << step) - 1)
            counts += np.bincount(key, minlength=len(counts))
        falling = counts.reshape(columns, -1)[:, ::-1].cumsum(axis=1)  # candidates from the largest bits down
        fewer |= falling[:, -1] < room
        digit = np.argmax(falling >= room[:, None], axis=1)
        before = np.where(digit > 0, falling[np.arange(columns), digit - 1], 0)
        room = room - before
        known = (known << step) | ((1 << step) - 1 - digit)
    bound = known.astype(np.uint32).view(np.float32)
    bound = np.where(most == 0, _LARGEST, np.where(fewer, np.float32(0), bound))
    room[(most == 0) | fewer] = 0
    return bound, room
