import numpy as np
import torch

from sae_runtime.bundle import quota
from sae_runtime.bundle.quota import Quota
from sae_runtime.train.step.density import DensityTracker, expected_density, fit_quota


def masks(rates: torch.Tensor, n: int, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n, len(rates), generator=generator) < rates for _ in range(steps)]


def test_density_is_the_share_of_tokens() -> None:
    rates = torch.tensor([0.0, 0.1, 0.5, 1.0])
    tracker = DensityTracker(4, window=100_000, device=torch.device("cpu"))
    seen = masks(rates, 500, 20)
    for kept in seen:
        tracker.update(kept.sum(dim=0), len(kept))
    exact = torch.cat(seen).double().mean(dim=0)
    # The corrected average weighs early and late batches almost alike inside its window.
    assert (tracker.density - exact).abs().max() < 0.005
    assert tracker.silent_tokens.tolist() == [10_000, 0, 0, 0]


def test_density_after_one_batch_is_that_of_the_batch() -> None:
    tracker = DensityTracker(2, window=1000, device=torch.device("cpu"))
    tracker.update(torch.tensor([10, 0]), 10)
    assert tracker.density.tolist() == [1.0, 0.0]


def test_reorder_renumbers_the_features() -> None:
    tracker = DensityTracker(3, window=10, device=torch.device("cpu"))
    tracker.update(torch.tensor([2, 1, 0]), 2)
    tracker.reorder(torch.tensor([2, 1, 0]))
    assert tracker.density.tolist() == [0.0, 0.5, 1.0]
    assert tracker.silent_tokens.tolist() == [2, 0, 0]


def test_expected_density_follows_the_law_and_reveals_rare_features() -> None:
    law = quota.quotas(Quota(exponent=0.9, offset=20.0), 8.0, 400)
    density = torch.from_numpy(law).clone()
    density[390:] /= 50  # the collapsed tail
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    expected = expected_density(density[order])
    ratio = density[order] / expected
    assert ratio[order < 390].min() > 0.8
    assert ratio[order >= 390].max() < 0.1


def test_expected_density_without_a_law_is_zero() -> None:
    assert (expected_density(torch.zeros(50, dtype=torch.float64)) == 0).all()


def test_fit_quota_recovers_the_law() -> None:
    law = quota.quotas(Quota(exponent=0.9, offset=20.0), 8.0, 2000)
    fitted, r_squared = fit_quota(torch.from_numpy(law), slack=2.0)
    assert r_squared > 0.999 and fitted.slack == 2.0
    again = quota.quotas(fitted, 8.0, 2000)
    assert np.abs(np.log(again / law)).max() < 0.1
