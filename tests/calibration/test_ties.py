"""Cuts where values of z repeat: a threshold lies between two different values, or above the largest."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime import load
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle import quota
from sae_runtime.bundle.quota import Quota
from sae_runtime.calibration.thresholds import thresholds
from sae_runtime.exports import export
from sae_runtime.train import TrainConfig, fit

Rows = NDArray[np.float32]


def column(*repeats: tuple[float, int]) -> Rows:
    """One feature, float32 [1, tokens], with so many repeats of each value."""
    return np.repeat(*zip(*repeats, strict=True)).astype(np.float32)[None]  # type: ignore[call-overload, no-any-return]


def counts(z: Rows, threshold: Rows, noise: float = 0.0, seed: int = 0) -> NDArray[np.int64]:
    """The matches of each feature, if a program's sums differ by this much of the feature's largest value."""
    change = np.random.default_rng(seed).uniform(-noise, noise, z.shape) * z.max(axis=1, keepdims=True) * (z > 0)
    counted: NDArray[np.int64] = (z + change > threshold[:, None].astype(np.float64)).sum(axis=1)
    return counted


@pytest.mark.parametrize("density", [0.0, 0.1, 0.25, 0.5, 0.61, 1.0])
@pytest.mark.parametrize(
    "z",
    [
        column((0, 40), (1, 30), (2, 25), (3, 5)),
        column((1, 100)),
        column((0, 99), (0.5, 1)),
        column((0, 100)),
        column((1e-42, 50), (2e-42, 50)),
        column((1e30, 50), (1.0000001e30, 10), (1.001e30, 40)),
        column((0.1, 30), (0.10000001, 30), (0.2, 40)),
    ],
    ids=["steps", "all equal", "one value", "zeros", "denormal", "large", "neighbours"],
)
def test_ties_at_a_limit_are_not_active(z: Rows, density: float) -> None:
    threshold = thresholds([z], 100, 1.0, np.array([density]))
    limit = quota.tokens_per_feature(np.array([density]), 100)
    assert threshold.dtype == np.float32 and np.isfinite(threshold).all() and (threshold >= 0).all()
    for noise in (0.0, 1e-6):
        assert counts(z, threshold, noise)[0] <= limit[0]
    if z.max() < 1e-38:
        return  # rounding cannot be told from the values
    different = np.flatnonzero(np.diff(np.sort(z[0])) > 1e-4 * z.max()) + 1
    possible = [0, *(100 - different), (z > 0).sum()]
    assert counts(z, threshold)[0] == max(count for count in possible if count <= limit[0])


@pytest.mark.parametrize(
    ("k", "active"), [(0.3, 30), (0.4, 30), (0.44, 30), (0.46, 60), (0.59, 60), (0.7, 60), (1, 100)]
)
def test_the_common_threshold_goes_to_the_nearer_end_of_equal_values(k: float, active: int) -> None:
    z = column((1, 40), (2, 30), (3, 30))
    threshold = thresholds([z], 100, k)
    for noise in (0.0, 1e-6):
        assert counts(z, threshold, noise)[0] == active


def test_the_common_threshold_above_ties_where_both_ends_are_as_near() -> None:
    assert (
        counts(column((1, 40), (2, 30), (3, 30)), thresholds([column((1, 40), (2, 30), (3, 30))], 100, 0.45))[0] == 30
    )


@pytest.mark.parametrize("size", [1, 3, 7])
def test_ties_across_blocks_are_cut_alike(size: int) -> None:
    z = np.random.default_rng(0).integers(0, 6, (40, 300)).astype(np.float32)
    whole = thresholds([z], 300, 9.0)
    found = thresholds([z[begin : begin + size] for begin in range(0, 40, size)], 300, 9.0)
    np.testing.assert_array_equal(found, whole)
    steps = [int((z > value).sum()) for value in range(6)]
    assert counts(z, whole).sum() == min(steps, key=lambda step: abs(step - 2700))
    assert whole[0] % 1 == 0.5


@pytest.mark.parametrize("kind", ["mutual", "feature"])
@pytest.mark.parametrize("seed", range(8))
def test_rounding_changes_no_match_of_repeated_rows(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.maximum(rng.standard_normal((30, 12)), 0)[rng.zipf(1.4, 2000) % 30]
    z = (rows * (1 + rng.uniform(-1e-7, 1e-7, rows.shape))).T.astype(np.float32)
    density = quota.max_densities(Quota(exponent=0.7, slack=1.0), 3.0, 12) if kind == "feature" else None
    threshold = thresholds([z], 2000, 3.0, density)
    found = counts(z, threshold)
    for again in range(3):
        np.testing.assert_array_equal(counts(z, threshold, 1e-6, again), found)
    if density is not None:
        assert (found <= quota.tokens_per_feature(density, 2000)).all()


def test_many_different_values_are_cut_at_the_wanted_count() -> None:
    z = np.abs(np.random.default_rng(0).standard_normal((20, 50_000))).astype(np.float32)
    assert counts(z, thresholds([z], 50_000, 4.0)).sum() == pytest.approx(200_000, abs=10)
    density = np.full(20, 0.2)
    found = counts(z, thresholds([z], 50_000, 4.0, density))
    assert (found <= 10_000).all() and (found >= 9_990).all()


@pytest.mark.parametrize("d_sae", [1, 3])
def test_one_token(d_sae: int) -> None:
    z = np.arange(d_sae, dtype=np.float32)[:, None] + 1
    assert counts(z, thresholds([z], 1, 1.0)).sum() == 1
    assert counts(z, thresholds([z], 1, 1.0, np.full(d_sae, 0.2))).sum() == 0


@pytest.mark.parametrize(("kind", "slack"), [("mutual", 1.0), ("feature", 1.0), ("feature", 2.0)])
@pytest.mark.parametrize("size", [1.0, 250.0])
def test_a_bundle_of_repeated_rows_serves_what_it_measured(
    tmp_path: Path, one_thread: None, kind: str, slack: float, size: float
) -> None:
    rng = np.random.default_rng(0)
    words = size * (rng.standard_normal((50, 24)) + 3).astype(np.float32)
    x = words[rng.zipf(1.3, 20_000) % 50]
    config = TrainConfig(allocation=kind, slack=slack, k=3, d_sae=64, tokens=60_000, batch=500)
    measured = fit(x, tmp_path / "sae", config).measured
    export(tmp_path / "sae", graphs=())
    sae = load(tmp_path / "sae", graph="encode.onnx")
    served = sae.encode(x)
    assert served.l0().mean() == pytest.approx(measured["l0"], rel=0.1)
    read = bundles.read(tmp_path / "sae")
    weights = {name: tensor.astype(np.float64) for name, tensor in read.weights().items()}
    z = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    np.testing.assert_array_equal(served.to_dense() > 0, z > weights["threshold"])
    for rows in (1, 3, 64):  # the same in any batch
        np.testing.assert_array_equal(sae.encode(x[:rows]).to_dense() > 0, served.to_dense()[:rows] > 0)
