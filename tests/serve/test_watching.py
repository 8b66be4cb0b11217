"""Figures of live traffic against plain float64 numpy over the same rows."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime.bundle.manifest import Architecture, Manifest
from sae_runtime.bundle.stats import Stats
from sae_runtime.core.edits import Edit
from sae_runtime.core.features import from_slots
from sae_runtime.serve import watching
from sae_runtime.serve.counting import Counts, Histogram
from sae_runtime.serve.figures import expected_features, expected_figures
from sae_runtime.serve.watching import Watched

D_SAE, D_IN, SLOTS = 40, 6, 5
RNG = np.random.default_rng(0)
W_DEC = RNG.normal(size=(D_SAE, D_IN)).astype(np.float32)


def traffic(rows: int, features: int = D_SAE) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    indices = np.argsort(RNG.random((rows, features)), axis=1)[:, :7].astype(np.int64)
    values = np.where(np.arange(7) < RNG.integers(0, 8, (rows, 1)), RNG.random((rows, 7)) + 0.1, 0)
    return indices, -np.sort(-values.astype(np.float32), axis=1)


def dense(indices: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    full = np.zeros((len(indices), D_SAE))
    np.put_along_axis(full, indices, values.astype(np.float64), 1)
    return full


def rebuilt(indices: NDArray[np.int64], values: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    return (dense(indices, values) @ W_DEC).astype(np.float32)


def test_counts_equal_numpy_however_traffic_is_cut() -> None:
    indices, values = traffic(300)
    full = dense(indices, values) > 0
    for sizes in (1, 7, 300):
        watched = Watched(D_SAE, slots=SLOTS)
        for begin in range(0, 300, sizes):
            watched.saw(indices[begin : begin + sizes], values[begin : begin + sizes])
        totals, recent = watched.totals(), watched.recent()
        assert (totals.tokens, totals.matches) == (300, full.sum())
        assert totals.saturated == (full.sum(1) >= SLOTS).sum()
        assert recent.l0 == full.sum(1).mean()
        assert recent.saturated == (full.sum(1) >= SLOTS).mean()
        assert recent.explained_variance is None and recent.silent is None


def test_special_tokens_do_not_count() -> None:
    indices, values = traffic(50)
    own = RNG.random(50) < 0.7
    one, two = Watched(D_SAE, slots=SLOTS), Watched(D_SAE, slots=SLOTS)
    one.saw_features(from_slots([(indices, values)], D_SAE, (50,)), own)
    two.saw(indices[own], values[own])
    assert one.totals() == two.totals()
    assert one.recent() == two.recent()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_explained_variance_equals_numpy_on_the_sampled_rows(offset: float) -> None:
    indices, values = traffic(400)
    x = (dense(indices, values) @ W_DEC + RNG.normal(size=(400, D_IN)) + offset).astype(np.float32)
    clock = iter(np.arange(0, 1e6, 1.0))  # longer than the pause at every look
    watched = Watched(D_SAE, rebuild=lambda i, v, own: rebuilt(i, v, own) + np.float32(offset), now=lambda: next(clock))
    for begin in range(0, 400, 8):
        rows = slice(begin, begin + 8)
        watched.saw(indices[rows], values[rows], x[rows])
    assert watched.totals().sampled == 400
    wide = x.astype(np.float64)
    x_hat = (rebuilt(indices, values, x) + np.float32(offset)).astype(np.float64)
    expected = 1 - ((wide - x_hat) ** 2).sum() / ((wide - wide.mean(0)) ** 2).sum()
    assert watched.recent().explained_variance == pytest.approx(expected, abs=1e-9)


def test_the_sample_is_small_and_seldom() -> None:
    asked: list[int] = []

    def rebuild(i: Any, v: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(x))
        return np.asarray(x)

    now = [0.0]
    watched = Watched(D_SAE, rebuild=rebuild, now=lambda: now[0])
    indices, values = traffic(500)
    x = RNG.normal(size=(500, D_IN)).astype(np.float32)
    for _ in range(20):
        watched.saw(indices, values, x)
        now[0] += watching.PAUSE / 10
    assert 2 <= len(asked) <= 3
    assert max(asked) == watching.SAMPLE


def test_a_sample_that_cannot_be_rebuilt_harms_no_request() -> None:
    def overflows(*_: Any) -> NDArray[np.float32]:
        raise ValueError("a reconstruction overflows")

    watched = Watched(D_SAE, rebuild=overflows)
    watched.saw(*traffic(3), np.ones((3, D_IN), np.float32))
    assert watched.recent().tokens == 3
    assert watched.recent().explained_variance is None


def test_constant_activations_have_no_explained_variance() -> None:
    watched = Watched(D_SAE, rebuild=lambda i, v, x: x)
    watched.saw(*traffic(8), np.full((8, D_IN), 3.0, np.float32))
    assert watched.recent().explained_variance is None


def test_silent_features() -> None:
    density = np.full(D_SAE, 0.2, np.float32)
    density[7] = 1e-5
    stats = Stats(density, np.ones(D_SAE, np.float32), tokens=10_000)
    watched = Watched(D_SAE, stats=stats)
    tokens = math.ceil(math.log(1000 * D_SAE) / 0.2) + 1
    indices, values = traffic(tokens, features=30)  # features from 30 on are never active
    watched.saw(indices[: tokens // 2], values[: tokens // 2])
    assert watched.recent().silent == 0, "too early to tell"
    watched.saw(indices[tokens // 2 :], values[tokens // 2 :])
    seen = dense(indices, values).any(0)
    assert watched.recent().silent == np.count_nonzero(~seen & (density > 0.1)) >= 10


def test_chance_leaves_no_expected_feature_silent() -> None:
    """Independent tokens of Zipf's densities: a feature that is called expected is active, in 200 draws."""
    density = np.minimum(0.5, 1 / np.arange(1, 2001)).astype(np.float32)
    stats = Stats(density, np.ones(2000, np.float32), tokens=5000)
    for tokens in (50, 1000, 100_000):
        expected = expected_features(stats, tokens)
        active = RNG.binomial(tokens, np.broadcast_to(density, (200, 2000))) > 0
        assert not (expected & ~active).any()
        assert expected[0] or tokens < 100


def test_old_traffic_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "WINDOW", 100)
    watched = Watched(D_SAE)
    ones, none = np.ones((50, 2), np.float32), np.zeros((50, 2), np.float32)
    indices = np.tile(np.array([[0, 1]]), (50, 1))
    for _ in range(10):
        watched.saw(indices, ones)
    for _ in range(5):
        watched.saw(indices, none)
    assert watched.recent().l0 == 0
    assert watched.totals().matches == 10 * 100


def test_the_largest_edits() -> None:
    stats = Stats(np.ones(D_SAE, np.float32), np.arange(D_SAE).astype(np.float32), tokens=10)
    watched = Watched(D_SAE, stats=stats)
    watched.edited([Edit.set(4, 8.0), Edit.add(2, -6.0), Edit.scale(3, -2.5), Edit.cap(5, 1e9)])
    watched.edited([Edit(7), Edit.add(7, 7.0), Edit.set(0, 0.5)])  # the first changes nothing
    watched.edited([Edit.set(D_SAE, 1.0), Edit.set(-1, 1.0)])  # which do not exist
    totals = watched.totals()
    assert (totals.edits, totals.largest_edit, totals.largest_multiple, totals.largest_factor) == (6, 8.0, 3.0, 2.5)


def test_expected_figures() -> None:
    architecture = Architecture(d_in=D_IN, d_sae=D_SAE, selection="threshold")
    measured = {"fvu": 0.25, "l0": 6.0, "tokens": 1000.0}
    manifest = Manifest(architecture=architecture, allocation=None, slots=9, measured=measured)
    found = expected_figures(manifest, None)
    assert (found.l0, found.explained_variance, found.tokens, found.silent) == (6.0, 0.75, 1000, None)
    whole = Manifest(
        architecture=architecture,
        allocation=None,
        slots=9,
        measured=measured,
        measured_with_left_out={"fvu": 0.5, "l0": 7.0, "tokens": 1100.0},
    )
    assert expected_figures(whole, None).l0 == 7.0
    assert expected_figures(None, None).l0 is None


def test_counts_and_histograms() -> None:
    histogram, numbers = Histogram((1.0, 2.0, 4.0)), [0.5, 1.0, 1.5, 4.0, 9.0]
    for number in numbers:
        histogram.add(number)
    assert np.cumsum(histogram.below).tolist() == [sum(n <= end for n in numbers) for end in (1, 2, 4, math.inf)]
    assert histogram.total == sum(numbers)
    counts = Counts()
    counts.finished("sae.encode", "ok", 0.1)
    counts.finished("sae.encode", "Invalid", 0.2)
    counts.merged("sae.encode", 3, 40)
    before = counts.histograms()
    counts.merged("sae.encode", 3, 40)
    assert counts.outcomes() == {("sae.encode", "ok"): 1, ("sae.encode", "Invalid"): 1}
    assert before["rows"]["sae.encode"].total == 40
    assert before["requests"]["sae.encode"].total == 3
