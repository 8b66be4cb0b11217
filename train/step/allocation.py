"""The allocation: which token-feature matches a batch pays for (arXiv:2411.02124, abstract).

All allocations choose matches under limits on their number. The paper's Monotonic Importance Heuristic makes that a
greedy choice: the decoder rows have equal norm, so a larger activation is worth more, and the largest win.
"""

import torch
from torch import Tensor

# Ranks at which `largest_of_columns` begins a new TopK: the columns of one TopK then have limits near each other. One
# TopK for all columns would be as deep as the largest limit.
_GROUP_EDGES = (0, 64, 1024)


def allocate(
    z: Tensor, *, total: int | None = None, per_token: int | None = None, per_feature: Tensor | None = None
) -> Tensor:
    """The matches to pay for, as a mask bool [n, d_sae]. A pre-activation of 0 is never a match.

    | allocation                                        | limits                                   |
    |---------------------------------------------------|------------------------------------------|
    | token choice (TopK)                               | per_token = k                            |
    | mutual choice (BatchTopK)                         | total = round(k n)                       |
    | feature choice (BatchTopK with limits on columns) | per_feature = m, then total = round(k n) |

    The limits apply in the order per_token, per_feature, total. Each keeps the largest matches that the one before it
    left. Equal values at a cut may fall either way.

    >>> z = torch.tensor([[3.0, 1.0, 0.0], [5.0, 4.0, 2.0]])
    >>> allocate(z, per_token=1).int().tolist()
    [[1, 0, 0], [1, 0, 0]]
    >>> allocate(z, total=3).int().tolist()
    [[1, 0, 0], [1, 1, 0]]
    >>> allocate(z, total=3, per_feature=torch.tensor([1, 2, 2])).int().tolist()
    [[0, 0, 0], [1, 1, 1]]

    Args:
        z: pre-activations >= 0, [n, d_sae].
        total: the most matches in the batch.
        per_token: the most matches of each token.
        per_feature: the most matches of each feature, int64 [d_sae].
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
    """The positions in the flattened z of the limit[i] largest numbers of each column i, in any order.

    >>> z = torch.tensor([[3.0, 1.0], [5.0, 4.0]])
    >>> sorted(largest_of_columns(z, torch.tensor([1, 2])).tolist())
    [1, 2, 3]

    Args:
        z: pre-activations, [n, d_sae].
        limit: int64 [d_sae]; a limit above n counts as n.

    Returns:
        int64 [sum of the limits].
    """
    n, d_sae = z.shape
    limit = limit.clamp(0, n)
    order = torch.argsort(limit, descending=True, stable=True)
    edges = [edge for edge in _GROUP_EDGES if edge < d_sae] + [d_sae]
    positions = []
    for begin, end in zip(edges, edges[1:], strict=False):
        group = order[begin:end]
        depths = limit[group][:, None]
        depth = int(depths[0])
        tokens = z[:, group].T.topk(depth, dim=1).indices
        wanted = torch.arange(depth, device=z.device) < depths
        positions.append((tokens * d_sae + group[:, None])[wanted])
    return torch.cat(positions)
