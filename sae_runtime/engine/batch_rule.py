"""The batch rule for any number of tokens. Its memory grows with the matches, not with tokens times features.

This is the rule on all pre-activations z [tokens, d_sae] at once, with M = `total` and, for feature choice,
m_i = `limit[i]`:

>>> def matches(z, total, limit=None):
...     order = np.argsort(-z, axis=None, kind="stable")  # falling values; equal ones by token, then by feature
...     order = order[z.flat[order] > 0]
...     if limit is not None:  # feature choice: the first m_i of column i stay
...         feature = order % z.shape[1]
...         rank = np.array([np.count_nonzero(feature[:n] == i) for n, i in enumerate(feature)], int)
...         order = order[rank < limit[feature]]
...     kept = np.zeros(z.shape, bool)
...     kept.flat[order[:total]] = True
...     return kept
>>> matches(np.array([[5, 3], [4, 0]]), total=2, limit=np.array([1, 1])).tolist()
[[True, True], [False, False]]

A subset of z, the candidates, is enough (our design). Apply the rule to any candidates. Let bound_i be the value of the
M-th match, or of the m_i-th match in column i if that is larger, or 0 if there are fewer matches. More candidates only
raise bound_i. So a pre-activation below bound_i is not a match of the whole batch, and no other match depends on it. It
can be forgotten.

`first_pass` encodes each row with a few slots, above a floor. If a row fills its slots, what it lacks is at most its
last slot's value; if not, at most the floor. `second_pass` encodes a row again, with all its slots, if the row may lack
a value that reaches the smallest bound. Then no match is missing, and no row was read more than twice. The rows of the
second pass do not depend on the tiles, because the first pass ends with the matches among all its slots.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features, concatenate, from_slots
from sae_runtime.core.slots import Slots
from sae_runtime.engine.tiler import tiles_of
from sae_runtime.engine.tiling import DEFAULT

Encode = Callable[[Sequence[NDArray[np.int64]], NDArray[np.float32], bool], Iterator[Slots]]
"""Encodes tiles: (row numbers of each tile, which ascend; a bound, f32 [1] or [d_sae]; whether to give all slots).

It gives the slots of each tile: the pre-activations above the bound in order of falling value, as many as fit in a few
slots, or all of them."""

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
        encode: gives the pre-activations of rows. It should give more slots than total / tokens, because a row that
            needs more slots is encoded again.
        tokens: number of rows.
        d_sae: number of features.
        total: M, the total matches of the batch.
        limit: m_i, the limit of each feature's matches, [d_sae], for feature choice.
        tile: rows that are encoded at once.
        floor: a value that nearly all matches should exceed. With 0, the bound of each tile comes from the tiles before
            it.
        fresh: least number of candidates that are gathered before a cut.
    """
    candidates = Candidates(no_candidates(tokens, d_sae), total, limit, fresh)
    lacking = first_pass(encode, candidates, tiles_of(np.arange(tokens), tile), floor)
    second_pass(encode, candidates, lacking, tile)
    return candidates.features


def first_pass(
    encode: Encode, candidates: "Candidates", tiles: Sequence[NDArray[np.int64]], floor: float
) -> NDArray[np.float32]:
    """Gather a few slots of each row as candidates. Gives the largest value that each row may lack, or 0."""
    if floor > 0:  # all tiles have the same bound, so that threads may encode them at the same time
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
    for ids in tiles_of(rows_again(lacking, candidates.bound), tile):
        (slots,) = encode([ids], candidates.search_bound(), True)
        candidates.add(ids, slots, again=True)
    candidates.cut()


def rows_again(lacking: NDArray[np.float32], bound: NDArray[np.float32]) -> NDArray[np.int64]:
    """The rows that may lack a match, by the largest value that each may lack and the bound of the first pass.

    >>> rows_again(np.array([0, 1, 3], np.float32), np.array([2], np.float32))
    array([2])
    """
    return np.flatnonzero((lacking > 0) & (lacking >= bound.min()))


def no_candidates(tokens: int, d_sae: int) -> Features:
    """Features of so many tokens that have none.

    >>> no_candidates(3, 8).l0()
    array([0, 0, 0])
    """
    return concatenate([], d_sae, (0,)).spread(np.arange(0), (tokens,))


class Candidates:
    """The candidates of a batch, or of some rows of a larger one.

    They are the matches at the last cut (`features`), their `bound`, and newer candidates.

    Args:
        features: the first candidates.
        total: M.
        limit: m_i, [d_sae], for feature choice.
        fresh: least number of candidates that are gathered before a cut.
        bound: that the other rows of a larger batch leave.
    """

    def __init__(
        self,
        features: Features,
        total: int,
        limit: NDArray[np.int64] | None,
        fresh: int,
        bound: NDArray[np.float32] | None = None,
    ) -> None:
        self._total, self._limit, self._fresh_least = total, limit, fresh
        self._fresh: list[tuple[NDArray[np.int64], Features]] = []
        self.features, self.bound = features, np.zeros(1, np.float32) if bound is None else bound
        self._keep_matches()

    def search_bound(self) -> NDArray[np.float32]:
        """The value that a new candidate must exceed: just below the bound, because a tie may be a match."""
        return np.nextafter(self.bound, np.float32(0))

    def add(self, ids: NDArray[np.int64], slots: Slots, *, again: bool = False) -> None:
        """Make the slots of rows `ids` their candidates. If `again`, the candidates that they have keep their values.

        Another graph may round differently, and rounding must not move a candidate below the bound that it decides.
        """
        rows = from_slots([slots], self.features.d_sae, (len(ids),))
        self._fresh.append((ids, self.features.take(ids).union(rows) if again else rows))
        if sum(len(features.values) for _, features in self._fresh) > max(self._total // 2, self._fresh_least):
            self.cut()

    def cut(self) -> None:
        """Keep the matches among the candidates, and forget the other candidates."""
        if self._fresh:
            self.features = self._with_fresh()
            self._keep_matches()

    def _keep_matches(self) -> None:
        self.features, bound = cut(self.features, self._total, self._limit)
        self.bound = np.maximum(self.bound, bound)

    def _with_fresh(self) -> Features:
        ids = np.concatenate([ids for ids, _ in self._fresh])
        rows = concatenate([features for _, features in self._fresh], self.features.d_sae, ids.shape)
        self._fresh.clear()  # before the next copy, so that the candidates are not in memory twice
        return self.features.replaced(ids, rows)


def cut(candidates: Features, total: int, limit: NDArray[np.int64] | None) -> tuple[Features, NDArray[np.float32]]:
    """The matches among candidates by the batch rule, and their bound, f32 [1], or [d_sae] with limits.

    Args:
        candidates: of all tokens.
        total: M.
        limit: m_i, [d_sae], for feature choice.

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
    """The limit[i] largest candidates of each column i, and the value of the last one, or 0 if there are fewer."""
    feature, value = candidates.indices, candidates.values
    count = np.bincount(feature, minlength=candidates.d_sae)
    full = count >= limit
    in_full = full[feature]
    # Bits of positive floats are ordered like the floats, so one sort of (feature, bits) sorts all columns.
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
    # Among the candidates that equal the bound, the first tokens fill the rest of the column.
    ties = np.flatnonzero(in_full & (value == bound[feature]))
    ties = ties[np.argsort(feature[ties], kind="stable")]
    column = feature[ties]
    rank = np.arange(len(ties)) - np.searchsorted(column, column)
    room = limit - np.bincount(feature[keep & in_full], minlength=candidates.d_sae)
    keep[ties[rank < room[column]]] = True
    return candidates.filter(keep), bound
