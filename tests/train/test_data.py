from pathlib import Path

import numpy as np
import pytest

from sae_runtime.activations import Activations, Shard
from sae_runtime.train.data import Batches, centre_and_scale, split


def activations(n: int = 1000, documents: bool = False) -> Activations:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (n, 3)).astype(np.float32)
    x[:, 0] = np.arange(n)
    ids = np.sort(rng.integers(0, n // 10, n)).astype(np.int32) if documents else None
    return Activations(Path("x.npy"), [Shard(x, documents=ids)])


def test_split_takes_every_row_once() -> None:
    parts = split(activations(), 0.2, np.random.default_rng(0))
    everything = np.concatenate([parts.train, parts.calibration, parts.validation])
    assert sorted(everything.tolist()) == list(range(1000))
    assert len(parts.calibration) == pytest.approx(100, abs=2) == pytest.approx(len(parts.validation), abs=2)


def test_no_document_is_in_two_parts() -> None:
    data = activations(documents=True)
    assert data.documents is not None
    parts = split(data, 0.2, np.random.default_rng(0))
    seen = [set(data.documents[rows].tolist()) for rows in (parts.train, parts.calibration, parts.validation)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert len(parts.calibration) == pytest.approx(100, abs=40)


def test_split_follows_the_seed() -> None:
    first, second, other = (split(activations(), 0.2, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.train == second.train).all() and not np.array_equal(first.train, other.train)


def test_too_little_data_is_refused() -> None:
    for n in (2, 10):  # ten rows would leave one to measure, which has no variance
        with pytest.raises(ValueError, match=rf"x\.npy has {n} rows in {n} documents, too few to hold out 10%"):
            split(activations(n), 0.1, np.random.default_rng(0))


def test_batches_pass_over_all_rows_before_any_comes_again() -> None:
    data, rows = activations(), np.arange(100, 200)
    stream = Batches(data, rows, 30, np.random.default_rng(0))
    seen = np.concatenate([next(stream)[:, 0] for _ in range(10)])
    for epoch in range(3):
        assert sorted(seen[epoch * 100 : (epoch + 1) * 100].tolist()) == list(range(100, 200))
    assert seen[:100].tolist() != seen[100:200].tolist()


def test_batches_may_be_larger_than_the_data() -> None:
    assert next(Batches(activations(), np.arange(7), 20, np.random.default_rng(0))).shape == (20, 3)


def test_scale_brings_the_distance_from_the_mean_to_sqrt_d_in() -> None:
    data = activations()
    mean, scale = centre_and_scale(data, np.arange(1000), np.random.default_rng(0))
    x = data.slice(0, 1000)
    assert mean == pytest.approx(x.mean(axis=0), rel=1e-5)
    assert np.linalg.norm((x - mean) * scale, axis=1).mean() == pytest.approx(np.sqrt(3), rel=1e-5)


def test_equal_rows_are_refused() -> None:
    data = Activations(Path("x.npy"), [Shard(np.full((50, 3), 7.3, np.float32))])
    with pytest.raises(ValueError, match="all rows are equal"):
        centre_and_scale(data, np.arange(50), np.random.default_rng(0))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.npy holds no rows; give more activations"):
        split(Activations(Path("x.npy"), [Shard(np.zeros((0, 3), np.float32))]), 0.1, np.random.default_rng(0))


@pytest.mark.parametrize("count", [3, 5, 10])
def test_few_documents_give_each_part_one(count: int) -> None:
    ids = np.repeat(np.arange(count), 100).astype(np.int32)
    data = Activations(Path("x.npy"), [Shard(np.ones((len(ids), 3), np.float32), documents=ids)])
    parts = split(data, 0.1, np.random.default_rng(0))
    assert (len(parts.calibration), len(parts.validation)) == (100, 100)
    assert len(parts.train) == 100 * (count - 2)
