"""The positions of the largest pre-activations: of a vector, of each row, and of each column.

The C largest numbers of a vector are in the C groups with the largest maxima. So one TopK over the maxima of groups and
a second TopK over the members of those groups read a small part of the vector.
"""

import numpy as np
import torch
from torch import Tensor

GROUP = 32  # pre-activations of a group; with 16 there are twice as many maxima, with 64 twice as many members

# `largest_of_columns` begins a new TopK at these ranks, so that the columns of one TopK have limits near each other. A
# single TopK of all columns would be as deep as the largest limit.
_RANK_EDGES = (0, 64, 1024)


def largest(flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ascending positions of the `count` largest positive numbers of a vector, and these numbers.

    There are fewer than `count` if fewer numbers are positive.

    >>> positions, values = largest(torch.tensor([3.0, -1.0, 5.0, 4.0]), 2)
    >>> positions.tolist(), values.tolist()
    ([2, 3], [5.0, 4.0])
    """
    if len(flat) % GROUP or count * GROUP > len(flat):
        positions = top(flat, count)
        return positions, flat[positions]
    groups = flat.view(-1, GROUP)
    best = top(groups.amax(dim=1), count)
    members = groups.index_select(0, best).view(-1)
    chosen = top(members, count)
    return best[chosen // GROUP] * GROUP + chosen % GROUP, members[chosen]


def largest_of_rows(z: Tensor, k: int) -> Tensor:
    """The columns of the k largest numbers of each row of z [n, d_sae], in any order: int64 [n, k].

    >>> largest_of_rows(torch.tensor([[3.0, 1.0], [4.0, 5.0]]), 1).tolist()
    [[0], [1]]
    """
    n, d_sae = z.shape
    if d_sae % GROUP or k * GROUP > d_sae:
        return z.topk(k, dim=1, sorted=False).indices
    groups = z.view(n, -1, GROUP)
    best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
    begin = torch.arange(n, device=z.device)[:, None] * (d_sae // GROUP)
    members = z.view(-1, GROUP).index_select(0, (begin + best).flatten())  # gather takes three times as long
    chosen = members.view(n, -1).topk(k, dim=1, sorted=False).indices
    return best.gather(1, chosen // GROUP) * GROUP + chosen % GROUP


def largest_of_columns(z: Tensor, limit: Tensor) -> Tensor:
    """The positions in the flattened z of the limit[i] largest numbers of column i, for every i, in any order.

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
    edges = [edge for edge in _RANK_EDGES if edge < d_sae] + [d_sae]
    positions = []
    for begin, end in zip(edges, edges[1:], strict=False):
        columns = order[begin:end]
        depths = limit[columns][:, None]
        depth = int(depths[0])
        tokens = z[:, columns].T.topk(depth, dim=1).indices
        wanted = torch.arange(depth, device=z.device) < depths
        positions.append((tokens * d_sae + columns[:, None])[wanted])
    return torch.cat(positions)


def top(values: Tensor, count: int) -> Tensor:
    """As `largest`, the positions alone, without groups.

    >>> top(torch.tensor([3.0, -1.0, 5.0, 4.0]), 2).tolist()
    [2, 3]
    """
    count = min(max(count, 0), len(values))
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    return top_by_topk(values, count) if values.is_cuda else top_by_partition(values, count)


def top_by_topk(values: Tensor, count: int) -> Tensor:
    """As `top`, for a count in [1, length], by torch's TopK."""
    positions = values.topk(count, sorted=False).indices.sort().values
    return positions[values[positions] > 0]


def top_by_partition(values: Tensor, count: int) -> Tensor:
    """As `top`, for a count in [1, length] and a vector on the CPU, by numpy's partition.

    numpy partitions the numbers alone, with vector instructions. torch's TopK moves pairs of number and index, which
    takes six times as long on a CPU.
    """
    numbers = values.float().numpy()
    cut = np.partition(numbers, len(numbers) - count)[len(numbers) - count]
    positions = np.flatnonzero(numbers > 0 if cut <= 0 else numbers >= cut)
    if len(positions) > count:  # several numbers equal the cut, and only the first of them are kept
        tied = np.flatnonzero(numbers[positions] == cut)
        positions = np.delete(positions, tied[count - len(positions) :])
    return torch.from_numpy(positions)
