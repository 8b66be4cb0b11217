"""The batch rule over any number of tokens, in memory that grows with the matches, not with tokens times features.

The rule on all pre-activations z [tokens, d_sae] at once, with M = `total` and, for feature choice, m_i = `limit[i]`:

>>> def matches(z, total, limit=None):
...     order = np.argsort(-z, axis=None, kind="stable")  # falling values; equal ones by token, then by feature
...     order = order[z.flat[order] > 0]
...     if limit is not None:  # feature choice: the m_i first of column i stay
...         feature = order % z.shape[1]
...         rank = np.array([np.count_nonzero(feature[:n] == i) for n, i in enumerate(feature)], int)
...         order = order[rank < limit[feature]]
...     kept = np.zeros(z.shape, bool)
...     kept.flat[order[:total]] = True
...     return kept
>>> matches(np.array([[5, 3], [4, 0]]), total=2, limit=np.array([1, 1])).tolist()
[[True, True], [False, False]]

Why a subset of z, the candidates, is enough: for any subset, let bound_i be the value of the M-th pre-activation that
the rule keeps of it, or that of the m_i-th in column i where this is larger, or 0 where there are fewer. More
candidates only raise bound_i. So a pre-activation below bound_i is no match of the whole batch and decides about no
other one, and may be forgotten.

`first_pass` encodes each row with a few slots, from a floor on. A row that fills its slots lacks only values up to that
of its last slot; another row lacks only values up to the floor. `second_pass` encodes again, without a limit on slots,
each row that may lack a value of at least the smallest bound. After it no candidate that could be a match is missing,
and no row was encoded more than twice. Which rows these are does not depend on the tiles, because the first pass ends
with the matches among all its slots.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features, Slots, concatenate, from_slots
from sae_runtime.engine.tiler import tiles_of
from sae_runtime.engine.tiling import DEFAULT

Encode = Callable[[Sequence[NDArray[np.int64]], NDArray[np.float32], bool], Iterator[Slots]]
"""Gives, for each tile of rows (their numbers, ascending), the pre-activations above a bound (f32 [1] or [d_sae]), each
row by falling value: as many as fit in a few slots, or all of them where the last argument is True."""

_LARGEST = np.finfo(np.float32).max


def encode_joint(
    encode: Encode,
    tokens: int,
    d_sae: int,
    *,
    total: int,
    limit: NDArray[np.int64] | None,
    tile: int,
    floor: float = 0.0,
    fresh: int = DEFAULT.fresh,
) -> Features:
    """Features [tokens] by the batch rule.

    Args:
        encode: gives the pre-activations of rows; a row that needs more than its few slots is encoded again, so it
            should have more slots than total / tokens.
        tokens: number of rows.
        d_sae: number of features.
        total: M, the total matches of the batch.
        limit: m_i, the number of tokens that each feature may match, [d_sae], for feature choice.
        tile: rows encoded at once.
        floor: a value that most matches are expected to exceed; 0 means that nothing is known, and each tile is encoded
            from the bounds of the tiles before it on.
        fresh: candidates that are gathered before a cut, at least.
    """
    candidates = Candidates(tokens, d_sae, total, limit, fresh)
    lacking = first_pass(encode, candidates, tiles_of(np.arange(tokens), tile), floor)
    second_pass(encode, candidates, lacking, tile)
    return candidates.features


def first_pass(
    encode: Encode, candidates: "Candidates", tiles: Sequence[NDArray[np.int64]], floor: float
) -> NDArray[np.float32]:
    """Gather a few slots of each row as candidates; returns the largest value that each row may lack, 0 for none."""
    if floor > 0:  # the bound is the same for all tiles, which may be encoded side by side
        encoded = encode(tiles, np.array([floor], np.float32), False)
    else:
        encoded = (slots for ids in tiles for slots in encode([ids], candidates.search_bound(), False))
    d_sae = candidates.features.d_sae
    lacking = np.zeros(len(candidates.features), np.float32)
    for ids, (indices, values) in zip(tiles, encoded, strict=True):
        lacking[ids] = np.maximum(values[:, -1], floor) if values.shape[1] < d_sae else floor
        candidates.add(ids, (indices, values))
    candidates.cut()
    return lacking


def second_pass(encode: Encode, candidates: "Candidates", lacking: NDArray[np.float32], tile: int) -> None:
    """Complete the candidates of the rows that may lack a match."""
    again = np.flatnonzero((lacking > 0) & (lacking >= candidates.bound.min()))
    for ids in tiles_of(again, tile):
        (slots,) = encode([ids], candidates.search_bound(), True)
        candidates.complete(ids, slots)
    candidates.cut()


class Candidates:
    """The candidates of a batch: `features`, the matches at the last cut, their `bound`, and the ones added since."""

    def __init__(self, tokens: int, d_sae: int, total: int, limit: NDArray[np.int64] | None, fresh: int) -> None:
        self._total, self._limit, self._fresh_least = total, limit, fresh
        self._fresh: list[tuple[NDArray[np.int64], Features]] = []
        nothing = concatenate([], d_sae, (0,)).spread(np.arange(0), (tokens,))
        self.features, self.bound = cut(nothing, total, limit)

    def search_bound(self) -> NDArray[np.float32]:
        """The value that a new candidate must exceed: just below the bound, where it may still win a tie."""
        return np.nextafter(self.bound, np.float32(0))

    def add(self, ids: NDArray[np.int64], slots: Slots) -> None:
        """Take the slots of rows `ids` as their candidates, in place of those they had."""
        self._add(ids, from_slots([slots], self.features.d_sae, (len(ids),)))

    def complete(self, ids: NDArray[np.int64], slots: Slots) -> None:
        """Add the slots of rows `ids` to their candidates; a candidate they have already keeps its value.

        Another graph rounds differently, and a candidate that decides the bound must not fall below it by rounding.
        """
        self._add(ids, self.features.take(ids).union(from_slots([slots], self.features.d_sae, (len(ids),))))

    def _add(self, ids: NDArray[np.int64], candidates: Features) -> None:
        self._fresh.append((ids, candidates))
        if sum(len(features.values) for _, features in self._fresh) > max(self._total // 2, self._fresh_least):
            self.cut()

    def cut(self) -> None:
        """Forget the candidates that are no matches among those known now."""
        if self._fresh:
            self.features = self._with_fresh()
            self.features, self.bound = cut(self.features, self._total, self._limit)

    def _with_fresh(self) -> Features:
        ids = np.concatenate([ids for ids, _ in self._fresh])
        rows = concatenate([candidates for _, candidates in self._fresh], self.features.d_sae, ids.shape)
        self._fresh.clear()  # before the next copy, so that memory does not hold the candidates twice
        return self.features.replaced(ids, rows)


def cut(candidates: Features, total: int, limit: NDArray[np.int64] | None) -> tuple[Features, NDArray[np.float32]]:
    """The matches among candidates by the batch rule, and their bound, f32 [1], or [d_sae] with limits.

    Args:
        candidates: in any number.
        total: largest number of matches.
        limit: largest number of tokens that each feature may match, [d_sae].

    >>> candidates = from_slots([(np.array([[0, 1], [0, 1]]), np.array([[5, 3], [4, 1]], np.float32))], 2, (2,))
    >>> matches, bound = cut(candidates, total=2, limit=None)
    >>> matches.values.tolist(), bound.tolist()
    ([5.0, 4.0], [4.0])
    """
    bound = np.zeros(1, np.float32)
    if limit is not None:
        candidates, bound = _limit_columns(candidates, limit)
    value = candidates.values
    common = np.float32(0)
    if total == 0:
        common = _LARGEST
        candidates = candidates.filter(np.zeros(len(value), bool))
    elif len(value) >= total:
        common = np.partition(value, len(value) - total)[len(value) - total]
        keep = value > common
        ties = np.flatnonzero(value == common)
        keep[ties[: total - np.count_nonzero(keep)]] = True
        candidates = candidates.filter(keep)
    return candidates, np.maximum(bound, common)


def _limit_columns(candidates: Features, limit: NDArray[np.int64]) -> tuple[Features, NDArray[np.float32]]:
    """The limit[i] first candidates of each column i, and the value of the last one (0 in a column with fewer)."""
    feature, value = candidates.indices, candidates.values
    count = np.bincount(feature, minlength=candidates.d_sae)
    full = count >= limit
    in_full = full[feature]
    # The bits of positive floats rank as the floats do, so one sort of (feature, bits) orders all columns.
    key = feature[in_full].astype(np.uint64)
    key <<= np.uint64(32)
    key |= value[in_full].view(np.uint32)
    key.sort()
    end = np.cumsum(np.where(full, count, 0))
    bounded = full & (limit > 0)
    bound = np.where(full, _LARGEST, np.float32(0))
    bound[bounded] = key[(end - limit)[bounded]].astype(np.uint32).view(np.float32)
    del key
    keep = ~in_full
    keep |= value > bound[feature]
    # Of the candidates that equal the bound, the first tokens fill the rest of the column.
    ties = np.flatnonzero(in_full & (value == bound[feature]))
    ties = ties[np.argsort(feature[ties], kind="stable")]
    column = feature[ties]
    rank = np.arange(len(ties)) - np.searchsorted(column, column)
    room = limit - np.bincount(feature[keep & in_full], minlength=candidates.d_sae)
    keep[ties[rank < room[column]]] = True
    return candidates.filter(keep), bound
