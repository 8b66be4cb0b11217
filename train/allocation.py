"""Allocation: which token-feature matches a batch pays for (arXiv:2411.02124, abstract).

Choosing matches under a bound on sparsity is one problem with three optional limits. The paper's Monotonic Importance
Heuristic makes it greedy: among equals in norm, the larger activation is worth more, so the largest win.
"""

import torch
from torch import Tensor

# Like caps are near each other once sorted; a TopK per group costs far less than one as deep as the largest cap.
_GROUP_EDGES = (0, 64, 1024)


def allocate(
    z: Tensor, *, total: int | None = None, per_token: int | None = None, per_feature: Tensor | None = None
) -> Tensor:
    """The matches to pay for, as a mask bool [n, d_sae]; those with z = 0 never count.

    | allocation     | limits                                   |
    |----------------|------------------------------------------|
    | token choice   | per_token = k                            |
    | mutual choice  | total = round(k n)                       |
    | feature choice | per_feature = m, then total = round(k n) |

    A limit keeps the largest of those that the limits before it left. Ties at a cut may fall either way.

    Args:
        z: latents >= 0, [n, d_sae].
        total: matches in the batch.
        per_token: matches of each token.
        per_feature: matches of each feature, int64 [d_sae].
    """
    kept = z > 0
    if per_token is not None:
        kept &= _largest_of_rows(z, min(per_token, z.shape[1]))
    if per_feature is not None:
        best = largest_of_columns(torch.where(kept, z, 0), per_feature)
        kept &= torch.zeros_like(kept).view(-1).index_fill_(0, best, True).view_as(kept)
    if total is not None and total < z.numel():
        flat = torch.where(kept, z, 0).flatten()
        winners = torch.zeros_like(flat, dtype=torch.bool)
        winners[flat.topk(max(total, 0), sorted=False).indices] = True
        kept &= winners.view_as(kept)
    return kept


def _largest_of_rows(z: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(z, dtype=torch.bool)
    return mask.scatter_(1, z.topk(count, dim=1, sorted=False).indices, True)


def largest_of_columns(z: Tensor, limit: Tensor) -> Tensor:
    """Positions in the flattened z of the limit[i] largest of each column i, in any order: int64 [sum of the limits].

    Args:
        z: latents, [n, d_sae].
        limit: int64 [d_sae]; above n it counts as n.
    """
    n, d_sae = z.shape
    limit = limit.clamp(0, n)
    order = torch.argsort(limit, descending=True, stable=True)
    edges = [edge for edge in _GROUP_EDGES if edge < d_sae] + [d_sae]
    found = []
    for begin, end in zip(edges, edges[1:], strict=False):
        group = order[begin:end]
        depths = limit[group][:, None]
        depth = int(depths[0])
        tokens = z[:, group].T.topk(depth, dim=1).indices
        wanted = torch.arange(depth, device=z.device) < depths
        found.append((tokens * d_sae + group[:, None])[wanted])
    return torch.cat(found)
