"""The matches that `allocation.allocate` pays for, found without a pass over all latents for every limit.

The C largest of a vector lie in the C groups with the largest maxima, so a TopK over group maxima, and another over the
members of those groups, see a small part of the latents. The answer is exact.
"""

import torch
from torch import Tensor

_GROUP = 32  # latents; at 16 the maxima are twice as many, at 64 the members
_MARGIN = 1.25  # candidates over the budget at first, where caps may turn some of them away


def select(
    z: Tensor, *, total: int | None = None, per_token: int | None = None, per_feature: Tensor | None = None
) -> Tensor:
    """Where `allocate` with the same limits is True: ascending positions in the flattened z, int64 [matches].

    Args:
        z: latents, [n, d_sae], contiguous; negative ones count as 0.
        total: matches in the batch.
        per_token: matches of each token; not together with the other limits.
        per_feature: matches of each feature, int64 [d_sae]; needs `total`.

    Raises:
        ValueError: a combination of limits that no allocation has.
    """
    if per_token is not None:
        if total is not None or per_feature is not None:
            raise ValueError("per_token comes alone; use allocate for other combinations of limits")
        return _of_rows(z, min(per_token, z.shape[1]))
    if total is None:
        raise ValueError("select needs per_token or total; use allocate for other combinations of limits")
    if per_feature is None:
        return _largest(z, total)[0].sort().values
    return _capped(z, total, per_feature)


def _of_rows(z: Tensor, k: int) -> Tensor:
    n, d_sae = z.shape
    if d_sae % _GROUP or k * _GROUP > d_sae:
        at = z.topk(k, dim=1, sorted=False).indices
    else:
        groups = z.view(n, -1, _GROUP)
        best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
        members = groups.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).view(n, -1)
        chosen = members.topk(k, dim=1, sorted=False).indices
        at = best.gather(1, chosen // _GROUP) * _GROUP + chosen % _GROUP
    flat = (at + torch.arange(n, device=z.device)[:, None] * d_sae).flatten()
    return flat[z.view(-1)[flat] > 0].sort().values


def _largest(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions in the flattened z and values of its `count` largest positive numbers, in any order."""
    flat = z.view(-1)
    count = min(max(count, 0), len(flat))
    if len(flat) % _GROUP or count * _GROUP > len(flat):
        values, at = flat.topk(count, sorted=False)
    else:
        groups = flat.view(-1, _GROUP)
        best = groups.amax(dim=1).topk(count, sorted=False).indices
        values, chosen = groups[best].flatten().topk(count, sorted=False)
        at = best[chosen // _GROUP] * _GROUP + chosen % _GROUP
    positive = values > 0
    return at[positive], values[positive]


def _capped(z: Tensor, total: int, per_feature: Tensor) -> Tensor:
    """The `total` largest of those that are among the largest per_feature[i] of their column i.

    A match that a column turns away is smaller than those the column keeps. So it is enough to look at the largest
    latents of all: if enough of these survive their columns' limits, the largest survivors are the answer.
    """
    wanted = min(round(_MARGIN * total), z.numel())
    while True:
        at, values = _largest(z, wanted)
        kept = _within_limits(at % z.shape[1], values, per_feature)
        if int(kept.sum()) >= total or len(at) < wanted or wanted == z.numel():
            at, values = at[kept], values[kept]
            if len(at) > total:
                at = at[values.topk(total, sorted=False).indices]
            return at.sort().values
        wanted = min(2 * wanted, z.numel())


def _within_limits(feature: Tensor, values: Tensor, limit: Tensor) -> Tensor:
    """Which matches are among the limit[feature] largest of their feature: bool [matches]."""
    counts = torch.bincount(feature, minlength=len(limit))
    kept = torch.ones_like(feature, dtype=torch.bool)
    contested = (counts > limit)[feature].nonzero().squeeze(1)
    if len(contested):
        order = contested[values[contested].argsort(descending=True)]
        order = order[feature[order].argsort(stable=True)]  # by feature, the largest first
        mine = feature[order]
        begin = torch.searchsorted(mine, torch.arange(len(limit), device=mine.device))
        rank = torch.arange(len(mine), device=mine.device) - begin[mine]
        kept[order] = rank < limit[mine]
    return kept
