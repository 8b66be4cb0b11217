"""The density of each feature during training, and the density that a Zipf law gives its rank."""

import numpy as np
import torch
from torch import Tensor

from sae_runtime.bundle import quota
from sae_runtime.bundle.quota import Quota


class DensityTracker:
    """Moving averages of the features' densities, and the tokens since each feature was last active.

    The density is `average` [d_sae] divided by `weight`. The weight corrects for the start at zero, as in Adam.

    >>> tracker = DensityTracker(2, window=100, device=torch.device("cpu"))
    >>> tracker.update(torch.tensor([5, 0]), n=10)
    >>> tracker.density.tolist(), tracker.silent_tokens.tolist()
    ([0.5, 0.0], [0, 10])
    """

    def __init__(self, d_sae: int, window: int, device: torch.device) -> None:
        """Start at zero; `window` is the length of the average in tokens."""
        self.average = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.weight = 0.0
        self._window = window
        self.silent_tokens = torch.zeros(d_sae, dtype=torch.int64, device=device)

    @property
    def density(self) -> Tensor:
        """The share of the tokens on which each feature is active, float64 [d_sae]."""
        return self.average / max(self.weight, 1e-12)

    @torch.no_grad()
    def update(self, counts: Tensor, n: int) -> None:
        """Add a batch of n tokens, in which each feature has `counts` matches, int64 [d_sae]."""
        rate = min(n / self._window, 1.0)
        self.weight += rate * (1 - self.weight)
        self.average += rate * (counts.double() / n - self.average)
        self.silent_tokens = torch.where(counts > 0, 0, self.silent_tokens + n)

    def reorder(self, order: Tensor) -> None:
        """Renumber the features: the new feature i is the old feature order[i]."""
        self.average = self.average[order]
        self.silent_tokens = self.silent_tokens[order]


def fit_quota(density: Tensor, slack: float) -> tuple[Quota, float]:
    """The Zipf-Mandelbrot law that fits measured densities [d_sae], as a quota, and the fit's R^2.

    Raises:
        ValueError: too few features are active for a fit.

    >>> law, r_squared = fit_quota(1 / torch.arange(1.0, 201.0), slack=3.0)
    >>> round(law.exponent, 2), round(r_squared, 2)
    (1.0, 1.0)
    """
    exponent, offset, r_squared = quota.fit(density.cpu().numpy())
    return Quota(exponent=exponent, offset=offset, slack=slack), r_squared


def expected_density(density: Tensor) -> Tensor:
    """The density that the fitted law gives each feature's rank, with the same sum: float64 [d_sae].

    If too few features are active for a fit, all are zero, so that no feature counts as under-used without a law.

    >>> density = 1 / torch.arange(1.0, 201.0).double()
    >>> density[199] = 0.0001
    >>> round(float(expected_density(density)[199]), 3)
    0.005
    """
    try:
        law, _ = fit_quota(density, slack=1.0)
    except ValueError:
        return torch.zeros_like(density)
    total = min(float(density.sum()), float(len(density)))
    by_rank = torch.from_numpy(np.ascontiguousarray(quota.quotas(law, total, len(density)))).to(density.device)
    expected = torch.empty_like(density)
    expected[torch.argsort(density, descending=True, stable=True)] = by_rank
    return expected
