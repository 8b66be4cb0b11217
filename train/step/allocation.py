"""The allocation: which token-feature matches a batch pays for (arXiv:2411.02124, abstract).

Every allocation keeps the largest matches that its limits allow. This is the paper's Monotonic Importance Heuristic:
the decoder rows have equal norm, so a larger activation explains more.
"""

import torch
from torch import Tensor

from sae_runtime.train.step.largest import largest_of_columns


def allocate(
    z: Tensor, *, total: int | None = None, per_token: int | None = None, per_feature: Tensor | None = None
) -> Tensor:
    """The matches to pay for, as a mask bool [n, d_sae]. A pre-activation of 0 is never a match.

    | allocation                                        | limits                                   |
    |---------------------------------------------------|------------------------------------------|
    | token choice (TopK)                               | per_token = k                            |
    | mutual choice (BatchTopK)                         | total = round(k n)                       |
    | feature choice (BatchTopK with limits on columns) | per_feature = m, then total = round(k n) |

    The limits apply in the order per_token, per_feature, total. Each limit keeps the largest matches that the limits
    before it left. If values are equal at a cut, any of them may be kept.

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
        largest = z.topk(min(per_token, z.shape[1]), dim=1, sorted=False).indices
        kept &= torch.zeros_like(kept).scatter_(1, largest, True)
    if per_feature is not None:
        best = largest_of_columns(torch.where(kept, z, 0), per_feature)
        kept &= torch.zeros_like(kept).view(-1).index_fill_(0, best, True).view_as(kept)
    if total is not None and total < z.numel():
        flat = torch.where(kept, z, 0).flatten()
        winners = torch.zeros_like(flat, dtype=torch.bool)
        winners[flat.topk(max(total, 0), sorted=False).indices] = True
        kept &= winners.view_as(kept)
    return kept
