"""How much the rows of a decoder repeat each other."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 100  # of the histogram, of equal width over [-1, 1]
NEARLY_EQUAL = 0.9  # cosine
_BLOCK_ELEMENTS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """Cosines of every feature's decoder row to the row that is most like it, and in how many directions rows lie."""

    median: float
    high: float  # 99 % of the features are below
    nearly_equal: float  # share of the features above 0.9
    effective_rank: float  # of W_dec, between 1 and min(d_in, d_sae)
    histogram: tuple[int, ...]  # features in each of 100 bins of equal width over [-1, 1]


def redundancy(decoder: Tensor) -> Redundancy:
    """Measure a decoder W_dec [d_sae, d_in]; the lengths of its rows do not count."""
    rows = decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines = largest_cosines(rows).cpu().numpy()
    return Redundancy(
        median=float(np.median(cosines)),
        high=float(np.quantile(cosines, 0.99)),
        nearly_equal=float((cosines > NEARLY_EQUAL).mean()),
        effective_rank=effective_rank(rows),
        histogram=tuple(np.histogram(cosines, BINS, (-1, 1))[0].tolist()),
    )


@torch.no_grad()
def largest_cosines(rows: Tensor) -> Tensor:
    """Of unit rows [d_sae, d_in], the cosine of each to the other row that is most like it: [d_sae], -1 if alone."""
    best = torch.full_like(rows[:, 0], -1.0)
    size = max(_BLOCK_ELEMENTS // len(rows), 1)
    for begin in range(0, len(rows), size):  # blocks on and above the diagonal: a cosine counts for both of its rows
        block = rows[begin : begin + size]
        cosine = block @ rows[begin:].T
        cosine.fill_diagonal_(-1.0)
        best[begin : begin + size] = torch.maximum(best[begin : begin + size], cosine.amax(dim=1))
        best[begin:] = torch.maximum(best[begin:], cosine.amax(dim=0))
    return best.clamp_(-1.0, 1.0)


@torch.no_grad()
def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007): 1 for equal rows, 0 for zeros."""
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, max(_BLOCK_ELEMENTS // rows.shape[1], 1)):
        gram += part.double().T @ part.double()
    values = torch.linalg.eigvalsh(gram.cpu())
    # Rounding leaves eigenvalues near 0 that are not there.
    values = values[values > values.max().clamp_min(1e-30) * len(values) * 1e-15].sqrt()
    if len(values) == 0:
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-(share * share.log()).sum()))


@torch.no_grad()
def share_nearly_equal(rows: Tensor, sample: int = 512) -> float:
    """Share of unit rows [d_sae, d_in] that another row nearly equals, from `sample` rows spread over all."""
    chosen = torch.linspace(0, len(rows) - 1, min(sample, len(rows)), device=rows.device).long()
    cosine = rows[chosen] @ rows.T
    cosine[torch.arange(len(chosen), device=rows.device), chosen] = -1.0
    return float((cosine.amax(dim=1) > NEARLY_EQUAL).double().mean())
