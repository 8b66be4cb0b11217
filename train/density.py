"""How often each feature fires while training, and what a Zipf law expects of it."""

import numpy as np
import torch
from torch import Tensor

from sae_runtime import quota
from sae_runtime.quota import Quota


class DensityTracker:
    """Share of tokens on which each feature fires, as a moving average, and how long it has been silent.

    `average` [d_sae] over `weight` is the density: the weight corrects for the start at zero, as in Adam's moments.
    """

    def __init__(self, d_sae: int, window: int, device: torch.device) -> None:
        """Start with no counts; `window` is the length of the average in tokens."""
        self.average = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.weight = 0.0
        self._window = window
        self.silent_tokens = torch.zeros(d_sae, dtype=torch.int64, device=device)

    @property
    def density(self) -> Tensor:
        """Share of tokens, float64 [d_sae]."""
        return self.average / max(self.weight, 1e-12)

    @torch.no_grad()
    def update(self, counts: Tensor, n: int) -> None:
        """Take in the matches of each feature, int64 [d_sae], in a batch of n tokens."""
        rate = min(n / self._window, 1.0)
        self.weight += rate * (1 - self.weight)
        self.average += rate * (counts.double() / n - self.average)
        self.silent_tokens = torch.where(counts > 0, 0, self.silent_tokens + n)

    def reorder(self, order: Tensor) -> None:
        """Renumber the features: new feature i is the old order[i]."""
        self.average = self.average[order]
        self.silent_tokens = self.silent_tokens[order]


def fit_quota(density: Tensor, slack: float) -> tuple[Quota, float]:
    """The Zipf-Mandelbrot law that fits measured densities, as a quota, and the fit's R^2."""
    exponent, offset, r_squared = quota.fit(density.cpu().numpy())
    return Quota(exponent=exponent, offset=offset, slack=slack), r_squared


def expected_density(density: Tensor) -> Tensor:
    """What the fitted law gives each feature at its present rank, for the same total: float64 [d_sae].

    Zeros where too few features fire for a fit, so that nothing counts as under-used before there is a law.
    """
    try:
        law, _ = fit_quota(density, slack=1.0)
    except ValueError:
        return torch.zeros_like(density)
    total = min(float(density.sum()), float(len(density)))
    by_rank = torch.from_numpy(np.ascontiguousarray(quota.shares(law, total, len(density)))).to(density.device)
    expected = torch.empty_like(density)
    expected[torch.argsort(density, descending=True, stable=True)] = by_rank
    return expected
