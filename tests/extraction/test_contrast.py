import math

import numpy as np
import pytest
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from sae_runtime.core.features import Features
from sae_runtime.extraction.contrast import Contrast, _interval, contrast


def sparse(dense: ArrayLike) -> Features:
    """Features of the positive numbers of dense rows [texts, d_sae]."""
    rows = np.asarray(dense, np.float32)
    text, indices = np.nonzero(rows)
    indptr = np.searchsorted(text, np.arange(len(rows) + 1))
    return Features(indptr, indices.astype(np.int32), rows[text, indices], rows.shape[1], (len(rows),))


def made(texts: int, d_sae: int, seed: int = 0) -> NDArray[np.int64]:
    """Sparse rows with many equal values."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 5, (texts, d_sae)) * (rng.random((texts, d_sae)) < rng.random(d_sae) ** 2)


def by_feature(ranking: Contrast) -> dict[int, object]:
    return {one.feature: one for one in ranking.features}


def test_every_figure_equals_scipy_and_numpy_on_the_same_texts() -> None:
    """One text of about ranks and measures on all texts, so that the witness knows the texts."""
    for seed, texts in ((0, 2), (1, 9), (2, 60)):
        dense = made(texts, 40, seed)
        about = np.arange(texts) == seed % texts
        for flip in (False, True):
            sets = about ^ flip
            ranking = contrast(sparse(dense), sets, count=40)
            assert not ranking.held_out
            assert {one.feature for one in ranking.features} == set(np.flatnonzero(dense.any(axis=0)).tolist())
            for one in ranking.features:
                a, b = dense[sets, one.feature], dense[~sets, one.feature]
                auc = scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
                assert one.more == ("about" if auc >= 0.5 else "against")
                assert one.auc == one.ranked_auc == pytest.approx(max(auc, 1 - auc), abs=1e-12)
                assert one.density == (np.mean(a > 0), np.mean(b > 0))
                assert one.mean == pytest.approx((a.mean(), b.mean()))
                pooled = math.sqrt((a.var() * len(a) + b.var() * len(b)) / max(texts - 2, 1))
                assert one.d == pytest.approx((a.mean() - b.mean()) / pooled) if pooled > 1e-9 else True


def test_held_out_texts_are_others_than_those_that_rank() -> None:
    """Each part is known from the figures of features that mark single texts."""
    texts = 13
    dense, about = np.eye(texts), np.arange(texts) < 6
    ranking = contrast(sparse(dense), about, count=texts)
    assert ranking.held_out and ranking.ranked_on == (3, 3) and ranking.measured_on == (3, 4)
    assert len(ranking.features) == ranking.active == 6
    assert all(one.density == (0, 0) and one.auc == 0.5 and one.ranked_auc > 0.5 for one in ranking.features)
    assert {one.more for one in ranking.features} == {"about", "against"}
    assert contrast(sparse(dense), about, count=3).features == ranking.features[:3]
    other = contrast(sparse(dense), about, count=texts, seed=1)
    assert by_feature(other).keys() != by_feature(ranking).keys()


def test_a_held_out_figure_equals_scipy_on_its_half() -> None:
    dense = np.concatenate([made(50, 30), np.eye(50)], axis=1)  # the last features tell which texts ranked
    about = np.arange(50) % 3 == 0
    ranking = contrast(sparse(dense), about, count=80)
    ranked = np.isin(np.arange(50), [one.feature - 30 for one in ranking.features])
    assert ((ranked & about).sum(), (ranked & ~about).sum()) == ranking.ranked_on
    seen = 0
    for one in ranking.features:
        if one.feature < 30:
            a, b = dense[about & ~ranked, one.feature], dense[~about & ~ranked, one.feature]
            auc = scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
            assert one.auc == pytest.approx(auc if one.more == "about" else 1 - auc, abs=1e-12)
            assert one.mean == pytest.approx((a.mean(), b.mean()))
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("texts", [40, 400])
def test_planted_features_come_first_and_noise_is_near_a_half_where_it_was_not_ranked(texts: int) -> None:
    rng = np.random.default_rng(3)
    about = rng.random(texts) < 0.4
    dense = rng.exponential(1, (texts, 1536)) * (rng.random((texts, 1536)) < 0.05)
    dense[:, 700] = np.where(about, 2 + rng.random(texts), rng.random(texts) * (rng.random(texts) < 0.3))
    dense[:, 44] = np.where(about, 0, 1 + rng.random(texts))
    ranking = contrast(sparse(dense), about, count=300)
    first = ranking.features[:2]
    assert {(one.feature, one.more) for one in first} == {(700, "about"), (44, "against")}
    assert all(one.auc == 1 for one in first)
    assert first[0].d * first[1].d < 0
    rest = ranking.features[2:]
    assert np.mean([one.ranked_auc for one in rest]) > 0.52
    assert np.mean([one.auc for one in rest]) == pytest.approx(0.5, abs=0.01)


def test_equal_values_and_equal_areas() -> None:
    for value in (0.1, 7.0, 3e38):
        ranking = contrast(sparse(np.full((9, 3), value)), np.arange(9) < 5)
        assert [one.feature for one in ranking.features] == [0, 1, 2]
        assert all((one.auc, one.d, one.density) == (0.5, 0, (1, 1)) for one in ranking.features)
    dense = np.array([[1, 0.1, 0]] * 4 + [[0, 0, 0.3]] * 4)
    ranking = contrast(sparse(dense), np.arange(8) < 4)
    assert [(one.feature, one.more) for one in ranking.features] == [(0, "about"), (2, "against"), (1, "about")]
    assert [one.d for one in ranking.features] == [math.inf, -math.inf, math.inf]
    nothing = contrast(sparse(np.zeros((8, 3))), np.arange(8) < 4)
    assert nothing.features == () and nothing.active == 0


def test_a_value_of_zero_is_no_match() -> None:
    dense = made(30, 8)
    plain = sparse(dense)
    stored = Features(
        np.arange(31) * 8, np.tile(np.arange(8, dtype=np.int32), 30), dense.astype(np.float32).reshape(-1), 8, (30,)
    )
    about = np.arange(30) < 12
    assert contrast(plain, about) == contrast(stored, about)


def test_what_cannot_be_ranked_is_refused() -> None:
    pooled = sparse(made(6, 4))
    for about in (np.ones(6, bool), np.zeros(6, bool)):
        with pytest.raises(ValueError, match="two sets of texts, got [06] about and [06] against"):
            contrast(pooled, about)
    with pytest.raises(ValueError, match=r"about must be bool \[6\], one for each text, got int64 \[6\]"):
        contrast(pooled, np.arange(6))
    with pytest.raises(ValueError, match=r"bool \[6\].* got bool \[5\]"):
        contrast(pooled, np.ones(5, bool))
    with pytest.raises(ValueError, match="count must be 0 or more, got -1"):
        contrast(pooled, np.arange(6) < 3, count=-1)
    assert contrast(pooled, np.arange(6) < 3, count=0).features == ()


def test_the_interval_covers_the_true_area_nearly_always_and_is_wide_for_few_texts() -> None:
    low, high = _interval(1.0, 1, 1)
    assert low == pytest.approx(1 / (1 + 1.959964**2)) and high == 1  # solved by hand: V(t) = t (1 - t)
    assert _interval(1.0, 2, 2)[0] < 0.5 < _interval(1.0, 8, 8)[0]
    assert _interval(0.0, 9, 4) == pytest.approx(tuple(1 - end for end in reversed(_interval(1.0, 9, 4))))
    rng = np.random.default_rng(0)
    for a, b, shift in ((5, 5, 0.0), (12, 30, 1.0), (40, 8, 2.0)):
        true = scipy.stats.norm.cdf(shift / math.sqrt(2))
        held = []
        for _ in range(400):
            x, y = rng.standard_normal(a) + shift, rng.standard_normal(b)
            auc = np.mean(x[:, None] > y)
            held.append(_interval(float(auc), a, b)[0] <= true <= _interval(float(auc), a, b)[1])
        assert np.mean(held) > 0.92


def test_memory_grows_with_the_matches() -> None:
    """Of 10,000 texts by 1,000,000 features, dense rows would be 40 GB."""
    texts, d_sae = 10_000, 1_000_000
    rng = np.random.default_rng(0)
    indices = np.sort(rng.integers(0, d_sae // 20, (texts, 20)) * 20 + np.arange(20), axis=1).astype(np.int32)
    values = rng.random((texts, 20), np.float32) + 1e-3
    about = np.arange(texts) % 2 == 0
    indices[about, 0], indices[~about, 0] = 0, 1
    pooled = Features(np.arange(texts + 1) * 20, indices.reshape(-1), values.reshape(-1), d_sae, (texts,))
    first = contrast(pooled, about).features[:2]
    assert {(one.feature, one.more) for one in first} == {(0, "about"), (1, "against")}
