"""The matches that `allocation.allocate` pays for, found without a pass over all latents for every limit.

The C largest of a vector lie in the C groups with the largest maxima, so a TopK over group maxima, and another over the
members of those groups, see a small part of the latents. The answer is exact. Where the latents come from a cheap
product, they only nominate: somewhat more candidates than the budget, which exact values then decide.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sae_runtime.train.allocation import largest_of_columns
from sae_runtime.train.world import World

_GROUP = 32  # latents; at 16 the maxima are twice as many, at 64 the members
_MARGIN = 1.25  # candidates over the budget, where caps or exact values may turn some of them away
_SPARE = 8  # more of a column whose few candidates are only near the truth

Exact = Callable[[Tensor], Tensor]
"""Takes ascending positions in the flattened latents, int64 [m]; gives their exact values [m]."""


def select(
    z: Tensor,
    *,
    total: int | None = None,
    per_token: int | None = None,
    per_feature: Tensor | None = None,
    exact: Exact | None = None,
    world: World | None = None,
) -> tuple[Tensor, Tensor]:
    """Where `allocate` with the same limits is True, and the latents there.

    Args:
        z: latents, [n, d_sae], contiguous; negative ones count as 0.
        total: matches in the batch, over all processes.
        per_token: matches of each token; not together with the other limits.
        per_feature: matches of each feature, int64 [d_sae], over all processes; needs `total`.
        exact: set where z is only near the truth; matches are then chosen by exact values among the candidates that
            z nominates.
        world: the processes that share the batch, each with as many tokens.

    Returns:
        Ascending positions in the flattened z, int64 [matches], and the values there, float32 [matches].

    Raises:
        ValueError: a combination of limits that no allocation has.
    """
    if per_token is not None:
        if total is not None or per_feature is not None:
            raise ValueError("per_token comes alone; use allocate for other combinations of limits")
        return _of_rows(z, min(per_token, z.shape[1]), exact)
    if total is None:
        raise ValueError("select needs per_token or total; use allocate for other combinations of limits")
    return _of_batch(z, total, per_feature, exact, world or World())


def _of_rows(z: Tensor, k: int, exact: Exact | None) -> tuple[Tensor, Tensor]:
    n, d_sae = z.shape
    begin = torch.arange(n, device=z.device)[:, None] * d_sae
    if exact is None:
        at = (_row_candidates(z, k) + begin).flatten().sort().values
        values = z.view(-1)[at]
    else:
        width = min(round(_MARGIN * k) + 1, d_sae)
        nominated = (_row_candidates(z, width) + begin).sort(dim=1).values
        best = exact(nominated.flatten()).view(n, width).topk(k, dim=1)
        at, order = nominated.gather(1, best.indices).flatten().sort()
        values = best.values.flatten()[order]
    positive = values > 0
    return at[positive], values[positive]


def _row_candidates(z: Tensor, k: int) -> Tensor:
    """Features of the k largest latents of every row, in any order: int64 [n, k]."""
    n, d_sae = z.shape
    if d_sae % _GROUP or k * _GROUP > d_sae:
        return z.topk(k, dim=1, sorted=False).indices
    groups = z.view(n, -1, _GROUP)
    best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
    begin = torch.arange(n, device=z.device)[:, None] * (d_sae // _GROUP)
    members = z.view(-1, _GROUP).index_select(0, (begin + best).flatten()).view(n, -1)  # a third of what gather takes
    chosen = members.topk(k, dim=1, sorted=False).indices
    return best.gather(1, chosen // _GROUP) * _GROUP + chosen % _GROUP


def _of_batch(
    z: Tensor, total: int, per_feature: Tensor | None, exact: Exact | None, world: World
) -> tuple[Tensor, Tensor]:
    """The `total` largest of those that are among the largest per_feature[i] of their column i.

    A match that a column turns away is smaller than those the column keeps. So it is enough to look at the largest
    latents of all: if enough of these survive their columns' limits, the largest survivors are the answer. Limits
    that hardly leave the budget enough would have it look at nearly all latents: then each column names its own.
    """
    size = z.numel() * world.size
    first = total if per_feature is None and exact is None else round(_MARGIN * total)
    wanted = min(first, size)
    while True:
        # One more look, where it sees less than half of all; beyond that a TopK of every column costs less.
        if per_feature is not None and wanted > first and (wanted > 2 * first or 2 * _GROUP * wanted > size):
            at, values = _largest_of_columns(z, per_feature, rough=exact is not None)
            exhausted = True
        else:
            at, values = _largest(z, wanted, world)
            exhausted = wanted == size or world.count(len(at)) < wanted
        if exact is not None:
            values = exact(at)
            at, values = at[values > 0], values[values > 0]
        kept = _decided(at, values, total, per_feature, world)
        if exhausted or world.count(int(kept.sum())) >= total:
            return at[kept], values[kept]
        wanted = min(2 * wanted, size)


def _largest(z: Tensor, count: int, world: World) -> tuple[Tensor, Tensor]:
    """Ascending positions and values of this process's part of the `count` largest positive latents of all."""
    if world.size == 1 or count == 0:
        return _largest_here(z, count)
    mine = -(-round(_MARGIN * count) // world.size)
    while True:
        at, values = _largest_here(z, mine)
        everyone = world.gather(values)
        cut = everyone.topk(count).values[-1] if len(everyone) > count > 0 else everyone.new_zeros(())
        # Where all that a process named lie above the cut, it may have more.
        hidden = len(at) == mine < z.numel() and bool(values.min() > cut)
        if not world.count(int(hidden)):
            return at[values >= cut], values[values >= cut]
        mine = min(2 * mine, z.numel())


def _largest_here(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    flat = z.view(-1)
    if len(flat) % _GROUP or count * _GROUP > len(flat):
        at = _top(flat, count)
        return at, flat[at]
    groups = flat.view(-1, _GROUP)
    best = _top(groups.amax(dim=1), count)
    members = groups.index_select(0, best).view(-1)
    chosen = _top(members, count)
    return best[chosen // _GROUP] * _GROUP + chosen % _GROUP, members[chosen]


def _top(values: Tensor, count: int) -> Tensor:
    """Ascending positions of the `count` largest of a vector's positive numbers, of all where they are fewer."""
    count = min(max(count, 0), len(values))
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    return _by_topk(values, count) if values.is_cuda else _by_partition(values, count)


def _by_topk(values: Tensor, count: int) -> Tensor:
    at = values.topk(count, sorted=False).indices.sort().values
    return at[values[at] > 0]


def _by_partition(values: Tensor, count: int) -> Tensor:
    # numpy partitions the numbers alone, with vector instructions: a sixth of torch's TopK on a CPU, which moves pairs.
    numbers = values.float().numpy()
    cut = np.partition(numbers, len(numbers) - count)[len(numbers) - count]
    at = np.flatnonzero(numbers > 0 if cut <= 0 else numbers >= cut)
    if len(at) > count:  # as many of those at the cut as there is room for
        tied = np.flatnonzero(numbers[at] == cut)
        at = np.delete(at, tied[count - len(at) :])
    return torch.from_numpy(at)


def _largest_of_columns(z: Tensor, limit: Tensor, *, rough: bool) -> tuple[Tensor, Tensor]:
    """Positions and values of what may be among the limit[i] largest of column i over all processes, ascending."""
    if rough:
        limit = (limit * _MARGIN).long() + _SPARE
    at = largest_of_columns(z, limit).sort().values
    values = z.view(-1)[at]
    return at[values > 0], values[values > 0]


def _decided(at: Tensor, values: Tensor, total: int, per_feature: Tensor | None, world: World) -> Tensor:
    """Which candidates of this process win against those of all processes: bool [candidates]."""
    begin = int(world.gather(torch.full((1,), len(values), device=values.device))[: world.rank].sum())
    everyone = world.gather(values)
    kept = torch.ones_like(everyone, dtype=torch.bool)
    if per_feature is not None:
        feature = (at % len(per_feature)).int()
        kept = _within_limits(world.gather(feature).long(), everyone, per_feature)
    if int(kept.sum()) > total:
        kept = torch.zeros_like(kept).index_fill_(0, _top(torch.where(kept, everyone, 0), total), True)
    return kept[begin : begin + len(values)]


def _within_limits(feature: Tensor, values: Tensor, limit: Tensor) -> Tensor:
    """Which matches are among the limit[feature] largest of their feature: bool [matches]."""
    counts = torch.bincount(feature, minlength=len(limit))
    kept = torch.ones_like(feature, dtype=torch.bool)
    contested = (counts > limit)[feature].nonzero().squeeze(1)
    if len(contested):
        mine = feature[contested]
        # Bits of positive floats rise with the floats: one key sorts by feature, then by falling value.
        key = (mine << 32) - values[contested].float().view(torch.int32).long()
        order = key.argsort()
        mine = mine[order]
        begin = torch.searchsorted(mine, torch.arange(len(limit), device=mine.device))
        rank = torch.arange(len(mine), device=mine.device) - begin[mine]
        kept[contested[order]] = rank < limit[mine]
    return kept
