"""The matches that `allocation.allocate` pays for, without a full pass over the pre-activations for every limit.

The selection under a total and under limits of features is, in numpy, with the names of the code below:

    positions = np.flatnonzero(z > 0)                       # the candidates
    values = z.flat[positions]
    if per_feature is not None:
        feature = positions % d_sae
        order = np.lexsort((-values, feature))              # by feature, and within a feature by falling value
        begin = np.searchsorted(feature[order], np.arange(d_sae))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order)) - begin[feature[order]]
        positions, values = positions[rank < per_feature[feature]], values[rank < per_feature[feature]]
    positions = np.sort(positions[np.argsort(-values)[:total]])

The code reads few of the candidates: `largest` finds the largest pre-activations without a sort of all. The answer is
exact. If the pre-activations come from a cheap product, they only nominate candidates, somewhat more than the total,
among which exact values decide.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sae_runtime.train.step.largest import GROUP, largest, largest_of_columns, largest_of_rows, top
from sae_runtime.train.world import ALONE, World

_MARGIN = 1.25  # ratio of candidates to matches, if limits of features or exact values may refuse some candidates
_SPARE = 8  # further candidates of every column if exact values decide, since a column of few candidates has no margin

Exact = Callable[[Tensor], Tensor]
"""Takes ascending positions in the flattened pre-activations, int64 [m], and returns their exact values [m]."""


def select(
    z: Tensor,
    *,
    total: int | None = None,
    per_token: int | None = None,
    per_feature: Tensor | None = None,
    exact: Exact | None = None,
    world: World = ALONE,
) -> tuple[Tensor, Tensor]:
    """The positions at which `allocate` with the same limits is True, and the pre-activations there.

    >>> positions, values = select(torch.tensor([[3.0, 1.0, -2.0], [5.0, 4.0, 2.0]]), total=3)
    >>> positions.tolist(), values.tolist()
    ([0, 3, 4], [3.0, 5.0, 4.0])

    Args:
        z: pre-activations, [n, d_sae], contiguous; negative ones count as 0.
        total: the most matches in the batch, over all processes.
        per_token: the most matches of each token; not together with the other limits.
        per_feature: the most matches of each feature, int64 [d_sae], over all processes; needs `total`.
        exact: computes exact values if those of z are rough. Then z nominates candidates, and their exact values
            decide.
        world: the processes that share the batch, each with the same number of tokens.

    Returns:
        Ascending positions in the flattened z, int64 [matches], and the values there, float32 [matches].

    Raises:
        ValueError: no allocation has this combination of limits.
    """
    if per_token is not None:
        if total is not None or per_feature is not None:
            raise ValueError("per_token comes alone; use allocate for other combinations of limits")
        return _of_rows(z, min(per_token, z.shape[1]), exact)
    if total is None:
        raise ValueError("select needs per_token or total; use allocate for other combinations of limits")
    return _of_batch(z, total, per_feature, exact, world)


def _of_rows(z: Tensor, k: int, exact: Exact | None) -> tuple[Tensor, Tensor]:
    n, d_sae = z.shape
    begin = torch.arange(n, device=z.device)[:, None] * d_sae
    if exact is None:
        positions = (largest_of_rows(z, k) + begin).flatten().sort().values
        values = z.view(-1)[positions]
    else:
        count = min(round(_MARGIN * k) + 1, d_sae)
        nominated = (largest_of_rows(z, count) + begin).sort(dim=1).values
        best = exact(nominated.flatten()).view(n, count).topk(k, dim=1)
        positions, order = nominated.gather(1, best.indices).flatten().sort()
        values = best.values.flatten()[order]
    return _positive(positions, values)


def _positive(positions: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The matches whose values are above 0."""
    positive = values > 0
    return positions[positive], values[positive]


def _of_batch(
    z: Tensor, total: int, per_feature: Tensor | None, exact: Exact | None, world: World
) -> tuple[Tensor, Tensor]:
    """The `total` largest of those matches that are among the per_feature[i] largest of their column i.

    Invariant: a match that is no candidate is at most as large as every candidate. A column refuses only matches that
    are smaller than those it keeps. So the answer is right as soon as `total` candidates are kept. Until then each
    round takes twice as many candidates as the round before.
    """
    size = z.numel() * world.size
    first = total if per_feature is None and exact is None else round(_MARGIN * total)
    wanted = min(first, size)
    while True:
        by_column = per_feature is not None and _is_column_search_cheaper(wanted, first, size)
        if per_feature is not None and by_column:
            positions, values = _column_candidates(z, per_feature, rough=exact is not None)
        else:
            positions, values = _largest_of_batch(z, wanted, world)
        complete = by_column or wanted == size or world.count(len(positions)) < wanted
        if exact is not None:
            positions, values = _positive(positions, exact(positions))
        kept = _winners(positions, values, total, per_feature, world)
        if complete or world.count(int(kept.sum())) >= total:
            return positions[kept], values[kept]
        wanted = min(2 * wanted, size)


def _is_column_search_cheaper(wanted: int, first: int, size: int) -> bool:
    """Whether a TopK of every column costs less than a search for the `wanted` largest of all `size` pre-activations.

    If the limits sum to little more than the total, the search would go on to nearly all pre-activations. A second
    search is worth its cost if it reads less than half of them.
    """
    return wanted > first and (wanted > 2 * first or 2 * GROUP * wanted > size)


def _largest_of_batch(z: Tensor, count: int, world: World) -> tuple[Tensor, Tensor]:
    """Ascending positions and values of those `count` largest pre-activations of the batch that this process holds.

    Several processes agree on the value of the `count`-th largest of all, the cut. Each process names somewhat more
    than an equal share of `count`. If all values that a process named are above the cut, it may have more of them, and
    all processes name twice as many.
    """
    if world.size == 1 or count == 0:
        return largest(z.view(-1), count)
    named = -(-round(_MARGIN * count) // world.size)
    while True:
        positions, values = largest(z.view(-1), named)
        all_values = world.gather(values)
        cut = all_values.topk(count).values[-1] if len(all_values) > count else all_values.new_zeros(())
        may_have_more = len(positions) == named < z.numel() and bool(values.min() > cut)
        if not world.count(int(may_have_more)):
            return positions[values >= cut], values[values >= cut]
        named = min(2 * named, z.numel())


def _column_candidates(z: Tensor, limit: Tensor, *, rough: bool) -> tuple[Tensor, Tensor]:
    """Ascending positions and values of all matches of this process that can be among the limit[i] largest of column i.

    With rough values more of every column can be among them.
    """
    if rough:
        limit = (limit * _MARGIN).long() + _SPARE
    positions = largest_of_columns(z, limit).sort().values
    return _positive(positions, z.view(-1)[positions])


def _winners(positions: Tensor, values: Tensor, total: int, per_feature: Tensor | None, world: World) -> Tensor:
    """True for the candidates of this process that win among the candidates of all processes: bool [candidates]."""
    begin = int(world.gather(torch.full((1,), len(values), device=values.device))[: world.rank].sum())
    all_values = world.gather(values)
    kept = torch.ones_like(all_values, dtype=torch.bool)
    if per_feature is not None:
        feature = (positions % len(per_feature)).int()
        kept = _within_limits(world.gather(feature).long(), all_values, per_feature)
    if int(kept.sum()) > total:
        kept = torch.zeros_like(kept).index_fill_(0, top(torch.where(kept, all_values, 0), total), True)
    return kept[begin : begin + len(values)]


def _within_limits(feature: Tensor, values: Tensor, limit: Tensor) -> Tensor:
    """True for the matches that are among the limit[feature] largest of their feature: bool [matches]."""
    counts = torch.bincount(feature, minlength=len(limit))
    kept = torch.ones_like(feature, dtype=torch.bool)
    contested = (counts > limit)[feature].nonzero().squeeze(1)
    if len(contested):
        feature = feature[contested]
        # The bits of positive floats have the order of the floats, so one key sorts by feature and by falling value.
        key = (feature << 32) - values[contested].float().view(torch.int32).long()
        order = key.argsort()
        feature = feature[order]
        begin = torch.searchsorted(feature, torch.arange(len(limit), device=feature.device))
        rank = torch.arange(len(feature), device=feature.device) - begin[feature]
        kept[contested[order]] = rank < limit[feature]
    return kept
