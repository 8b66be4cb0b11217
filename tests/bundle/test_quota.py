import numpy as np
import pytest

from sae_runtime.bundle.quota import (
    Quota,
    fit,
    max_densities,
    quotas,
    sampled_tokens_per_feature,
    tokens_per_feature,
    total_matches,
)

QUOTAS = [
    Quota(exponent=0.0),
    Quota(exponent=0.9, offset=30.0),
    Quota(exponent=1.0),
    Quota(exponent=3.0, offset=0.5),
    Quota(exponent=10.0),
]


@pytest.mark.parametrize("quota", QUOTAS)
@pytest.mark.parametrize(("k", "d_sae"), [(1.0, 1), (0.5, 40), (16.0, 1536), (39.5, 40), (40.0, 40), (3.0, 40)])
def test_quotas_fall_sum_to_k_and_are_at_most_one(quota: Quota, k: float, d_sae: int) -> None:
    share = quotas(quota, k, d_sae)
    assert share.shape == (d_sae,) and share.dtype == np.float64
    assert share.sum() == pytest.approx(k, rel=1e-9)
    assert (np.diff(share) <= 0).all() and share[0] <= 1 and (share > 0).all()


def test_quotas_follow_the_law_if_none_exceeds_one() -> None:
    share = quotas(Quota(exponent=0.9, offset=30.0), 16.0, 1536)
    law = (np.arange(1, 1537) + 30.0) ** -0.9
    np.testing.assert_allclose(share, 16 * law / law.sum(), rtol=1e-12)
    np.testing.assert_allclose(quotas(Quota(exponent=0.0), 4.0, 100), 0.04, rtol=1e-12)


def test_quotas_above_one_become_one_and_the_others_keep_the_law() -> None:
    share = quotas(Quota(exponent=1.0), 30.0, 100)
    head = int((share == 1).sum())
    law = 1 / np.arange(1, 101)
    assert head > 5
    np.testing.assert_allclose(share[head:], (30 - head) * law[head:] / law[head:].sum(), rtol=1e-12)
    # With one quota of 1 less, the next quota would exceed 1.
    assert (30 - head + 1) * law[head - 1] / law[head - 1 :].sum() > 1


@pytest.mark.parametrize("k", [0.0, -1.0, 40.5, float("nan")])
def test_quotas_refuse_a_k_out_of_range(k: float) -> None:
    with pytest.raises(ValueError, match=r"k must be in \(0, d_sae=40\], got"):
        quotas(Quota(exponent=1.0), k, 40)


@pytest.mark.parametrize(
    "wrong",
    [
        {"exponent": -0.1},
        {"exponent": 10.1},
        {"exponent": float("nan")},
        {"exponent": 1.0, "offset": -1.0},
        {"exponent": 1.0, "offset": float("inf")},
        {"exponent": 1.0, "slack": 0.0},
        {"exponent": 1.0, "slack": float("inf")},
    ],
)
def test_a_quota_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"quota expects exponent in \[0, 10\], offset >= 0 and slack > 0, got"):
        Quota(**wrong)


def test_slack_scales_max_densities_up_to_one() -> None:
    share = quotas(Quota(exponent=1.0), 6.0, 150)
    np.testing.assert_array_equal(max_densities(Quota(exponent=1.0), 6.0, 150), share)
    loose = max_densities(Quota(exponent=1.0, slack=1.5), 6.0, 150)
    np.testing.assert_array_equal(loose, np.minimum(1.5 * share, 1))
    assert loose[0] == 1 and loose[-1] < 1
    assert (max_densities(Quota(exponent=1.0, slack=1e9), 6.0, 150) == 1).all()


def test_total_matches_round_half_to_even_in_float64() -> None:
    assert [total_matches(0.5, n) for n in (0, 1, 2, 3, 5, 7)] == [0, 0, 1, 2, 2, 4]
    assert total_matches(32.1, 1_000_003) == 32_100_096  # float32 gives 32,100,094
    assert round(float(np.float32(32.1) * np.float32(1_000_003))) != 32_100_096


def test_tokens_per_feature_round_half_to_even() -> None:
    found = tokens_per_feature(np.array([0.0, 0.1, 0.25, 0.35, 0.5, 1.0]), 10)
    assert found.tolist() == [0, 1, 2, 4, 5, 10] and found.dtype == np.int64
    assert tokens_per_feature(np.array([0.3, 1.0]), 0).tolist() == [0, 0]


def test_sampled_limits_have_the_exact_sum_and_mean() -> None:
    max_density, tokens, steps = max_densities(Quota(exponent=0.9, offset=30.0, slack=1.5), 6.3, 700), 37, 1000
    exact = max_density * tokens
    assert (exact < 1).any() and (exact > 1).any()
    mean = np.zeros(700)
    for u in (np.arange(steps) + 0.5) / steps:
        found = sampled_tokens_per_feature(max_density, tokens, u)
        assert found.dtype == np.int64
        assert ((found == np.floor(exact)) | (found == np.ceil(exact))).all()
        assert abs(found.sum() - exact.sum()) < 1
        mean += found / steps
    np.testing.assert_allclose(mean, exact, atol=2 / steps)


@pytest.mark.parametrize("u", [0.0, 0.3, np.nextafter(1.0, 0.0)])
def test_sampled_limits_keep_whole_numbers(u: float) -> None:
    assert sampled_tokens_per_feature(np.array([1.0, 0.5, 0.0, 1.0]), 8, u).tolist() == [8, 4, 0, 8]
    assert sampled_tokens_per_feature(np.array([1.0, 0.5]), 0, u).tolist() == [0, 0]


@pytest.mark.parametrize(("exponent", "offset"), [(0.9, 30.0), (1.0, 0.0), (0.5, 5.0), (2.0, 100.0)])
def test_fit_recovers_the_law(exponent: float, offset: float) -> None:
    density = quotas(Quota(exponent=exponent, offset=offset), 4.0, 1500)
    assert density[0] < 1, "a clipped head is not the law"
    shuffled = np.random.default_rng(0).permutation(np.concatenate([density, np.zeros(36)]))
    found_exponent, found_offset, r_squared = fit(shuffled)
    assert found_exponent == pytest.approx(exponent, rel=0.05)
    assert found_offset == pytest.approx(offset, rel=0.15, abs=0.5)
    assert r_squared > 0.999


def test_fit_of_equal_densities_is_uniform() -> None:
    exponent, _, _ = fit(np.full(200, 0.03))
    assert exponent == pytest.approx(0, abs=1e-6)


def test_fit_refuses_too_few_active_features() -> None:
    density = np.zeros(100)
    density[:19] = 0.1
    with pytest.raises(ValueError, match="at least 20 active features, got 19; train for longer"):
        fit(density)
