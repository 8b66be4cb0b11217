import numpy as np
import pytest
import torch
from torch import Tensor

from sae_runtime.bundle import quota
from sae_runtime.bundle.quota import Quota
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.thresholds import fit_thresholds


@pytest.fixture
def model() -> SparseAutoencoder:
    return SparseAutoencoder(120, torch.zeros(16), generator=torch.Generator().manual_seed(0))


def activations(n: int) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(1))


def z_of(model: SparseAutoencoder, x: Tensor) -> np.ndarray:
    return model.pre_activations(x).detach().numpy()


@pytest.mark.parametrize("elements", [1 << 25, 5000])
def test_mutual_choice_has_one_threshold_and_exactly_k(model: SparseAutoencoder, elements: int) -> None:
    x = activations(500)
    threshold = fit_thresholds(model, x, 6.0, elements=elements)
    assert threshold.dtype == np.float32 and len(np.unique(threshold)) == 1
    assert (z_of(model, x) > threshold).sum() == 3000
    # Midway: a little noise in z, as between torch and onnxruntime, changes nothing.
    z = np.sort(z_of(model, x).ravel())
    assert threshold[0] == pytest.approx((z[-3000] + z[-3001]) / 2, rel=1e-6)


@pytest.mark.parametrize("slack", [1.0, 1.5, 4.0])
def test_feature_choice_keeps_k_and_every_largest_density(model: SparseAutoencoder, slack: float) -> None:
    x = activations(800)
    max_density = quota.max_densities(Quota(exponent=0.8, offset=3.0, slack=slack), 6.0, 120)
    threshold = fit_thresholds(model, x, 6.0, max_density)
    kept = z_of(model, x) > threshold
    limit = quota.tokens_per_feature(max_density, 800)
    assert (kept.sum(axis=0) <= limit).all()
    positive = (z_of(model, x) > 0).sum(axis=0)
    assert kept.sum() == min(4800, np.minimum(positive, limit).sum())
    assert (kept.sum(axis=0) >= np.minimum(positive, quota.tokens_per_feature(max_density / 30, 800))).all()
    assert np.isfinite(threshold).all() and (threshold >= 0).all()
    if slack > 1:
        assert np.isclose(threshold, threshold.min()).sum() > 1, "the common cut binds for features below their caps"


def test_feature_choice_does_not_silence_features_of_small_values(model: SparseAutoencoder) -> None:
    with torch.no_grad():
        model.W_enc[5] *= 0.01
    x, max_density = activations(800), quota.max_densities(Quota(exponent=0.0, slack=3.0), 6.0, 120)
    z = z_of(model, x)
    threshold = fit_thresholds(model, x, 6.0, max_density)
    assert (z[:, 5] > threshold[5]).sum() == 4, "a thirtieth of 800 * 0.15"
    assert (z > threshold).sum() == 4800, "which the others pay for"
    assert (z[:, 5] > fit_thresholds(model, x, 6.0)[5]).sum() == 0, "mutual choice silences it"


def test_features_that_are_never_active_get_a_finite_threshold(model: SparseAutoencoder) -> None:
    with torch.no_grad():
        model.b_enc[5] = -1e6
    max_density = quota.max_densities(Quota(exponent=0.0, slack=1.0), 6.0, 120)
    assert np.isfinite(fit_thresholds(model, activations(300), 6.0, max_density)[5])
    assert np.isfinite(fit_thresholds(model, activations(300), 6.0)[5])


def test_a_feature_whose_limit_rounds_to_no_token_is_silent(model: SparseAutoencoder) -> None:
    x, max_density = activations(100), np.full(120, 0.5)
    max_density[7] = 0.001  # a tenth of a token: rounds to none
    kept = z_of(model, x) > fit_thresholds(model, x, 6.0, max_density)
    assert not kept[:, 7].any() and kept.any()


def test_a_k_above_the_positive_values_keeps_all_of_them(model: SparseAutoencoder) -> None:
    x = activations(50)
    assert (fit_thresholds(model, x, 120.0) == 0).all()


def test_limits_of_rare_features_are_fitted_to_more_rows(model: SparseAutoencoder) -> None:
    x, more = torch.split(activations(20_000), [500, 19_500])
    max_density = quota.max_densities(Quota(exponent=1.0, slack=1.0), 3.0, 120)
    rare = max_density < 0.02
    everything = z_of(model, torch.cat([x, more]))
    alone, together = (
        (everything > fit_thresholds(model, x, 3.0, max_density, more=rows)).mean(axis=0)[rare] / max_density[rare]
        for rows in (None, more)
    )
    assert together.max() <= 1.05 and together.min() > 0.9
    assert alone.max() > 1.3, "ten tokens of 500 do not tell a density of 0.02"
