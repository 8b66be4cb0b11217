"""The matches that `allocation.allocate` pays for, found without a full pass over the pre-activations for every limit.

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

The code looks at few of the candidates. The C largest numbers of a vector lie in the C groups with the largest maxima,
so one TopK over the maxima of groups and another over the members of those groups see a small part of the
pre-activations. The answer is exact. Where the pre-activations come from a cheap product they only nominate: some more
candidates than the total, among which exact values decide.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sae_runtime.train.step.allocation import largest_of_columns
from sae_runtime.train.world import World

_GROUP = 32  # pre-activations of a group; with 16 there are twice as many maxima, with 64 twice as many members
_MARGIN = 1.25  # candidates over the total, where limits of features or exact values may refuse some of them
_SPARE = 8  # candidates more of every column, where exact values decide: a few with rough values may be the wrong ones

Exact = Callable[[Tensor], Tensor]
"""Takes ascending positions in the flattened pre-activations, int64 [m], and returns their exact values [m]."""


def select(
    z: Tensor,
    *,
    total: int | None = None,
    per_token: int | None = None,
    per_feature: Tensor | None = None,
    exact: Exact | None = None,
    world: World | None = None,
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
        exact: computes exact values, where z holds rough ones. Then z nominates candidates, and their exact values
            decide.
        world: the processes that share the batch, each with the same number of tokens.

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
        positions = (_row_candidates(z, k) + begin).flatten().sort().values
        values = z.view(-1)[positions]
    else:
        count = min(round(_MARGIN * k) + 1, d_sae)
        nominated = (_row_candidates(z, count) + begin).sort(dim=1).values
        best = exact(nominated.flatten()).view(n, count).topk(k, dim=1)
        positions, order = nominated.gather(1, best.indices).flatten().sort()
        values = best.values.flatten()[order]
    return _positive(positions, values)


def _positive(positions: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The matches whose values are above 0."""
    positive = values > 0
    return positions[positive], values[positive]


def _row_candidates(z: Tensor, k: int) -> Tensor:
    """The features of the k largest pre-activations of every row, in any order: int64 [n, k]."""
    n, d_sae = z.shape
    if d_sae % _GROUP or k * _GROUP > d_sae:
        return z.topk(k, dim=1, sorted=False).indices
    groups = z.view(n, -1, _GROUP)
    best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
    begin = torch.arange(n, device=z.device)[:, None] * (d_sae // _GROUP)
    members = (
        z.view(-1, _GROUP).index_select(0, (begin + best).flatten()).view(n, -1)
    )  # gather takes three times as long
    chosen = members.topk(k, dim=1, sorted=False).indices
    return best.gather(1, chosen // _GROUP) * _GROUP + chosen % _GROUP


def _of_batch(
    z: Tensor, total: int, per_feature: Tensor | None, exact: Exact | None, world: World
) -> tuple[Tensor, Tensor]:
    """The `total` largest of the matches that are among the per_feature[i] largest of their column i.

    Invariant: a match that is not among the candidates is at most as large as every candidate. A column refuses only
    matches below those that it keeps. So the answer is right as soon as `total` candidates are kept. Otherwise the
    next round looks at twice as many candidates.
    """
    size = z.numel() * world.size
    first = total if per_feature is None and exact is None else round(_MARGIN * total)
    wanted = min(first, size)
    while True:
        by_column = per_feature is not None and _is_column_search_cheaper(wanted, first, size)
        if per_feature is not None and by_column:
            positions, values = _largest_of_columns(z, per_feature, rough=exact is not None)
        else:
            positions, values = _largest(z, wanted, world)
        complete = by_column or wanted == size or world.count(len(positions)) < wanted
        if exact is not None:
            positions, values = _positive(positions, exact(positions))
        kept = _winners(positions, values, total, per_feature, world)
        if complete or world.count(int(kept.sum())) >= total:
            return positions[kept], values[kept]
        wanted = min(2 * wanted, size)


def _is_column_search_cheaper(wanted: int, first: int, size: int) -> bool:
    """Whether a TopK of every column costs less than a search for the `wanted` largest of all `size` pre-activations.

    Limits that together hardly exceed the total would drive the search to nearly all pre-activations. One search beyond
    the first is worth its cost, if it looks at less than half of them.
    """
    return wanted > first and (wanted > 2 * first or 2 * _GROUP * wanted > size)


def _largest(z: Tensor, count: int, world: World) -> tuple[Tensor, Tensor]:
    """Those of the `count` largest positive pre-activations of the batch that this process holds.

    Returns:
        Ascending positions, and values.
    """
    if world.size == 1 or count == 0:
        return _largest_here(z, count)
    return _largest_of_processes(z, count, world)


def _largest_of_processes(z: Tensor, count: int, world: World) -> tuple[Tensor, Tensor]:
    """As `_largest`, for several processes, which agree on the value of the `count`-th largest of all.

    Each process names a little more than an equal share of `count`. If all that a process named lie above the cut, it
    may have more of them, and all processes name twice as many.
    """
    named = -(-round(_MARGIN * count) // world.size)
    while True:
        positions, values = _largest_here(z, named)
        all_values = world.gather(values)
        cut = all_values.topk(count).values[-1] if len(all_values) > count else all_values.new_zeros(())
        may_have_more = len(positions) == named < z.numel() and bool(values.min() > cut)
        if not world.count(int(may_have_more)):
            return positions[values >= cut], values[values >= cut]
        named = min(2 * named, z.numel())


def _largest_here(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ascending positions and values of the `count` largest positive pre-activations of this process."""
    flat = z.view(-1)
    if len(flat) % _GROUP or count * _GROUP > len(flat):
        positions = _top(flat, count)
        return positions, flat[positions]
    groups = flat.view(-1, _GROUP)
    best = _top(groups.amax(dim=1), count)
    members = groups.index_select(0, best).view(-1)
    chosen = _top(members, count)
    return best[chosen // _GROUP] * _GROUP + chosen % _GROUP, members[chosen]


def _top(values: Tensor, count: int) -> Tensor:
    """Ascending positions of the `count` largest positive numbers of a vector, or of all where there are fewer."""
    count = min(max(count, 0), len(values))
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    return top_by_topk(values, count) if values.is_cuda else top_by_partition(values, count)


def top_by_topk(values: Tensor, count: int) -> Tensor:
    """As `_top`, for a count in [1, length], by torch's TopK."""
    positions = values.topk(count, sorted=False).indices.sort().values
    return positions[values[positions] > 0]


def top_by_partition(values: Tensor, count: int) -> Tensor:
    """As `_top`, for a count in [1, length] and a vector on the CPU, by numpy's partition.

    numpy partitions the numbers alone, with vector instructions. torch's TopK moves pairs of number and index, which
    takes six times as long on a CPU.
    """
    numbers = values.float().numpy()
    cut = np.partition(numbers, len(numbers) - count)[len(numbers) - count]
    positions = np.flatnonzero(numbers > 0 if cut <= 0 else numbers >= cut)
    if len(positions) > count:  # several numbers equal the cut: keep as many of them as there is room for
        tied = np.flatnonzero(numbers[positions] == cut)
        positions = np.delete(positions, tied[count - len(positions) :])
    return torch.from_numpy(positions)


def _largest_of_columns(z: Tensor, limit: Tensor, *, rough: bool) -> tuple[Tensor, Tensor]:
    """Ascending positions and values of all matches here that can be among the limit[i] largest of column i."""
    if rough:
        limit = (limit * _MARGIN).long() + _SPARE
    positions = largest_of_columns(z, limit).sort().values
    return _positive(positions, z.view(-1)[positions])


def _winners(positions: Tensor, values: Tensor, total: int, per_feature: Tensor | None, world: World) -> Tensor:
    """Which candidates of this process win among the candidates of all processes: bool [candidates]."""
    begin = int(world.gather(torch.full((1,), len(values), device=values.device))[: world.rank].sum())
    all_values = world.gather(values)
    kept = torch.ones_like(all_values, dtype=torch.bool)
    if per_feature is not None:
        feature = (positions % len(per_feature)).int()
        kept = _within_limits(world.gather(feature).long(), all_values, per_feature)
    if int(kept.sum()) > total:
        kept = torch.zeros_like(kept).index_fill_(0, _top(torch.where(kept, all_values, 0), total), True)
    return kept[begin : begin + len(values)]


def _within_limits(feature: Tensor, values: Tensor, limit: Tensor) -> Tensor:
    """Which matches are among the limit[feature] largest of their feature: bool [matches]."""
    counts = torch.bincount(feature, minlength=len(limit))
    kept = torch.ones_like(feature, dtype=torch.bool)
    contested = (counts > limit)[feature].nonzero().squeeze(1)
    if len(contested):
        feature = feature[contested]
        # The bits of positive floats are in the order of the floats. So one key sorts by feature and falling value.
        key = (feature << 32) - values[contested].float().view(torch.int32).long()
        order = key.argsort()
        feature = feature[order]
        begin = torch.searchsorted(feature, torch.arange(len(limit), device=feature.device))
        rank = torch.arange(len(feature), device=feature.device) - begin[feature]
        kept[contested[order]] = rank < limit[feature]
    return kept
