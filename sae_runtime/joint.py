"""The batch rule over any number of tokens: tiles of them give candidates, and one cut over all candidates the matches.

The rule ranks the positive latents of a batch by falling value, equals by token and then by feature. Feature choice
keeps the m_i first of every column i; of what is left, and for mutual choice of all, the M first are the matches.

Why candidates are enough: for any set of latents, let theta_i be the value of the M-th latent that the rule leaves, or
of the m_i-th in column i where that is larger (0 where there are not so many). More latents only raise theta_i, so a
latent below it is no match of the whole batch, nor does it decide about another, and may be forgotten.

A row is encoded with a few slots first, from a floor on. If it fills them all, what it lacks is at most the value b of
its last slot, else at most the floor. Then every row with b >= theta_i for some i is encoded again, without a limit,
from theta on; after that no latent that could matter is missing, and no row was encoded more than twice. Which rows
these are does not depend on the tiles, since the first pass ends with the matches among all first slots.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime import quota
from sae_runtime.features import Features, Slots, from_slots
from sae_runtime.manifest import Allocation

# Gives, for each run of rows (their numbers, ascending), the latents above a bound (f32 [1] or [d_sae]), each row by
# falling value: as many as fit into a few slots, or, where the last argument says so, all.
Encode = Callable[[Sequence[NDArray[np.int64]], NDArray[np.float32], bool], Iterator[Slots]]

_FRESH = 1 << 16  # candidates that are gathered before a cut, at least
_LARGEST = np.finfo(np.float32).max


def encode_joint(
    encode: Encode,
    tokens: int,
    d_sae: int,
    *,
    budget: int,
    limit: NDArray[np.int64] | None,
    tile: int,
    floor: float = 0.0,
) -> Features:
    """Features [tokens] by the batch rule; memory grows with the budget, not with tokens * d_sae.

    Args:
        encode: gives the latents of rows; it should have more slots than budget / tokens, since a row that needs more
            than it has is encoded again.
        tokens: how many rows there are.
        d_sae: number of features.
        budget: M, matches of the batch.
        limit: m_i, tokens that each feature may match, [d_sae], for feature choice.
        tile: rows encoded at once.
        floor: where matches are expected to lie above; 0: nothing is known, and rows are encoded from the theta of the
            tiles before on.
    """
    pool = _Candidates(tokens, d_sae, budget, limit)
    missing = np.zeros(tokens, np.float32)  # what a row may lack is at most this; 0: nothing
    tiles = [np.arange(begin, min(begin + tile, tokens)) for begin in range(0, tokens, tile)]

    def first_slots() -> Iterator[Slots]:
        if floor > 0:
            yield from encode(tiles, np.array([floor], np.float32), False)
        else:
            for ids in tiles:
                yield from encode([ids], pool.reach(), False)

    for ids, (indices, values) in zip(tiles, first_slots(), strict=True):
        missing[ids] = np.maximum(values[:, -1], floor) if values.shape[1] < d_sae else floor
        pool.add(ids, (indices, values))
    pool.cut()
    again = np.flatnonzero((missing > 0) & (missing >= pool.theta.min()))
    for begin in range(0, len(again), tile):
        ids = again[begin : begin + tile]
        (slots,) = encode([ids], pool.reach(), True)
        pool.complete(ids, slots)
    pool.cut()
    return pool.features


def limits(
    allocation: Allocation, d_sae: int, tokens: int, *, k: float, cap: ArrayLike | None = None
) -> tuple[int, NDArray[np.int64] | None]:
    """Matches of a batch, M, and for feature choice the tokens that each feature may match, m_i [d_sae].

    Args:
        allocation: mutual or feature choice.
        d_sae: number of features.
        tokens: tokens of the batch.
        k: matches a token.
        cap: the largest share of the tokens that each feature may match, [d_sae]; None means as fitted.

    Raises:
        ValueError: the allocation is token choice, or has no caps, or they are not d_sae numbers from 0 to 1.
    """
    if allocation.kind == "token":
        raise ValueError("token choice has no batch rule of its own; use encode, piece by piece")
    budget = quota.budget(k, tokens)
    if allocation.quota is None:
        if cap is not None:
            raise ValueError("cap belongs to feature choice, this SAE was fitted by mutual choice; leave it out")
        return budget, None
    share = np.asarray(quota.caps(allocation.quota, allocation.k, d_sae) if cap is None else cap)
    if share.shape != (d_sae,) or share.dtype.kind not in "fiu" or not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"cap must be {d_sae} numbers from 0 to 1, got {share.dtype} {list(share.shape)}")
    return budget, quota.tokens_per_feature(share.astype(np.float64), tokens)


class _Candidates:
    """What is known of the latents of a batch: `features` after the last cut, its `theta`, and what came since."""

    def __init__(self, tokens: int, d_sae: int, budget: int, limit: NDArray[np.int64] | None) -> None:
        self._budget, self._limit = budget, limit
        self._fresh: list[tuple[NDArray[np.int64], Features]] = []
        nothing = Features(
            np.zeros(tokens + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), d_sae, (tokens,)
        )
        self.features, self.theta = cut(nothing, budget, limit)

    def reach(self) -> NDArray[np.float32]:
        """What a latent must lie above to be of interest: just below theta, where a tie may still be won."""
        return np.nextafter(self.theta, np.float32(0))

    def add(self, ids: NDArray[np.int64], slots: Slots) -> None:
        """Take the candidates of rows `ids` in place of those they had."""
        self._take(ids, from_slots([slots], self.features.d_sae, (len(ids),)))

    def complete(self, ids: NDArray[np.int64], slots: Slots) -> None:
        """Take what rows `ids` lack of these candidates; those they have keep their values.

        Another graph rounds otherwise. A candidate that decides theta must not fall below it by that.
        """
        have = _rows_of(self.features, ids)
        self._take(ids, _united(have, from_slots([slots], self.features.d_sae, (len(ids),))))

    def _take(self, ids: NDArray[np.int64], candidates: Features) -> None:
        self._fresh.append((ids, candidates))
        if sum(len(features.values) for _, features in self._fresh) > max(self._budget // 2, _FRESH):
            self.cut()

    def cut(self) -> None:
        """Forget what is no match even among the candidates known now."""
        if self._fresh:
            self.features = _replaced(self.features, self._fresh)
            self.features, self.theta = cut(self.features, self._budget, self._limit)


def cut(features: Features, budget: int, limit: NDArray[np.int64] | None) -> tuple[Features, NDArray[np.float32]]:
    """The matches among candidates by the batch rule, and theta f32 [1], or [d_sae] with limits.

    Args:
        features: candidates, in any number.
        budget: how many matches there may be.
        limit: how many tokens each feature may match, [d_sae].
    """
    theta = np.zeros(1, np.float32)
    if limit is not None:
        features, theta = _limit_columns(features, limit)
    value = features.values
    common = np.float32(0)
    if budget == 0:
        common = _LARGEST
        features = _only(features, np.zeros(len(value), bool))
    elif len(value) >= budget:
        common = np.partition(value, len(value) - budget)[len(value) - budget]
        keep = value > common
        ties = np.flatnonzero(value == common)
        keep[ties[: budget - np.count_nonzero(keep)]] = True
        features = _only(features, keep)
    return features, np.maximum(theta, common)


def _limit_columns(features: Features, limit: NDArray[np.int64]) -> tuple[Features, NDArray[np.float32]]:
    """The limit[i] first of every column i, and the value of the last of them (0 in a column that has fewer)."""
    feature, value = features.indices, features.values
    count = np.bincount(feature, minlength=features.d_sae)
    full = count >= limit
    mine = full[feature]
    # Bits of positive floats rank as the floats do: one sort orders all columns, each by rising value.
    key = feature[mine].astype(np.uint64)
    key <<= np.uint64(32)
    key |= value[mine].view(np.uint32)
    key.sort()
    end = np.cumsum(np.where(full, count, 0))
    bounded = full & (limit > 0)
    theta = np.where(full, _LARGEST, np.float32(0))
    theta[bounded] = key[(end - limit)[bounded]].astype(np.uint32).view(np.float32)
    del key
    keep = ~mine
    keep |= value > theta[feature]
    # Of those at theta, the first tokens fill what is left of the column.
    at = np.flatnonzero(mine & (value == theta[feature]))
    at = at[np.argsort(feature[at], kind="stable")]
    column = feature[at]
    rank = np.arange(len(at)) - np.searchsorted(column, column)
    room = limit - np.bincount(feature[keep & mine], minlength=features.d_sae)
    keep[at[rank < room[column]]] = True
    return _only(features, keep), theta


def _rows_of(features: Features, ids: NDArray[np.int64]) -> Features:
    """Some of the rows."""
    counts = np.diff(features.indptr)[ids]
    indptr = np.concatenate([[0], counts]).cumsum()
    at = np.repeat(features.indptr[ids] - indptr[:-1], counts) + np.arange(indptr[-1])
    return Features(indptr, features.indices[at], features.values[at], features.d_sae, ids.shape)


def _united(first: Features, second: Features) -> Features:
    """The matches of both; where both have one, with the value of the first."""
    keys = [np.repeat(np.arange(len(f)), np.diff(f.indptr)) * f.d_sae + f.indices for f in (first, second)]
    key, at = np.unique(np.concatenate(keys), return_index=True)  # the first of equals
    indptr = np.searchsorted(key, np.arange(len(first) + 1) * first.d_sae)
    values = np.concatenate([first.values, second.values])[at]
    return Features(indptr, (key % first.d_sae).astype(np.int32), values, first.d_sae, first.shape)


def _replaced(features: Features, fresh: list[tuple[NDArray[np.int64], Features]]) -> Features:
    """Features in which some rows, ascending, have others; empties the list of these, to hold nothing twice."""
    ids = np.concatenate([ids for ids, _ in fresh])
    rows = np.zeros(len(features), bool)
    rows[ids] = True
    counts = np.diff(features.indptr)
    old = np.repeat(~rows, counts)
    counts[ids] = np.concatenate([np.diff(new.indptr) for _, new in fresh])
    place = np.repeat(rows, counts)
    indices, values = np.empty(len(place), np.int32), np.empty(len(place), np.float32)
    indices[place] = np.concatenate([new.indices for _, new in fresh])
    values[place] = np.concatenate([new.values for _, new in fresh])
    fresh.clear()
    np.logical_not(place, out=place)
    indices[place], values[place] = features.indices[old], features.values[old]
    return Features(np.concatenate([[0], counts]).cumsum(), indices, values, features.d_sae, features.shape)


def _only(features: Features, keep: NDArray[np.bool_]) -> Features:
    """The matches where `keep` is True."""
    at = np.flatnonzero(keep)
    indptr = np.searchsorted(at, features.indptr)
    return Features(indptr, features.indices[at], features.values[at], features.d_sae, features.shape)
