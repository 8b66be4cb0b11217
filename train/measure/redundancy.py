"""How much the rows of a decoder repeat each other."""

import numpy as np
import torch
from torch import Tensor

from sae_runtime.bundle.evaluation_file import Redundancy

BINS = 100  # of the histogram: equal parts of [-1, 1]
NEARLY_EQUAL = 0.9  # cosine
_BLOCK_ELEMENTS = 1 << 24  # cosines in memory at once


def redundancy(decoder: Tensor, *, elements: int = _BLOCK_ELEMENTS) -> Redundancy:
    """Measure how much the rows of a decoder W_dec [d_sae, d_out] repeat each other, whatever their lengths.

    >>> round(redundancy(torch.eye(3)).effective_rank, 6)
    3.0
    """
    rows = decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = largest_cosines(rows, elements=elements).cpu().numpy()
    return Redundancy(
        median=float(np.median(cosines)),
        high=float(np.quantile(cosines, 0.99)),
        nearly_equal=float((cosines > NEARLY_EQUAL).mean()),
        effective_rank=effective_rank(rows, elements=elements),
        histogram=tuple(np.histogram(cosines, BINS, (-1, 1))[0].tolist()),
    )


@torch.no_grad()
def largest_cosines(rows: Tensor, *, elements: int = _BLOCK_ELEMENTS) -> Tensor:
    """The cosine of each unit row [d_sae, d_out] to the other row nearest to it: [d_sae]; -1 for a single row.

    >>> largest_cosines(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
    [1.0, 1.0, 0.0]
    """
    best = torch.full_like(rows[:, 0], -1.0)
    size = max(elements // len(rows), 1)
    for begin in range(0, len(rows), size):  # blocks on and above the diagonal, since a cosine counts for both its rows
        block = rows[begin : begin + size]
        cosine = block @ rows[begin:].T
        cosine.fill_diagonal_(-1.0)
        best[begin : begin + size] = torch.maximum(best[begin : begin + size], cosine.amax(dim=1))
        best[begin:] = torch.maximum(best[begin:], cosine.amax(dim=0))
    return best.clamp_(-1.0, 1.0)


@torch.no_grad()
def effective_rank(rows: Tensor, *, elements: int = _BLOCK_ELEMENTS) -> float:
    """The effective rank of rows [d_sae, d_out] (Roy and Vetterli 2007): 1 for equal rows, 0 for zeros.

    It is exp of the entropy of the singular values, each as a share of their sum.

    >>> round(effective_rank(torch.eye(3)), 6)
    3.0
    """
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, max(elements // rows.shape[1], 1)):
        gram += part.double().T @ part.double()
    values = torch.linalg.eigvalsh(gram.cpu())
    # Rounding turns eigenvalues of 0 into small numbers, which are dropped.
    values = values[values > values.max().clamp_min(1e-30) * len(values) * 1e-15].sqrt()
    if len(values) == 0:
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-(share * share.log()).sum()))


@torch.no_grad()
def share_nearly_equal(rows: Tensor, sample: int = 512) -> float:
    """The share of unit rows [d_sae, d_out] that have a cosine above 0.9 to another row.

    It is estimated from `sample` evenly spread rows.

    >>> share_nearly_equal(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    0.5
    """
    chosen = torch.linspace(0, len(rows) - 1, min(sample, len(rows)), device=rows.device).long()
    cosine = rows[chosen] @ rows.T
    cosine[torch.arange(len(chosen), device=rows.device), chosen] = -1.0
    return float((cosine.amax(dim=1) > NEARLY_EQUAL).double().mean())
