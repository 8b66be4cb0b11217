import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, Shard
from sae_runtime.train.held_out import fingerprint, split


def activations(n: int = 1000, documents: bool = False) -> Activations:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (n, 3)).astype(np.float32)
    x[:, 0] = np.arange(n)
    ids = np.sort(rng.integers(0, n // 10, n)).astype(np.int32) if documents else None
    return Activations(Path("x.npy"), [Shard(x, documents=ids)])


def test_split_takes_every_row_once() -> None:
    parts = split(activations(), 0.2, 0)
    everything = np.concatenate([parts.train, parts.calibration, parts.validation])
    assert sorted(everything.tolist()) == list(range(1000))
    assert len(parts.calibration) == pytest.approx(100, abs=2) == pytest.approx(len(parts.validation), abs=2)
    assert all((np.diff(part) > 0).all() for part in (parts.train, parts.calibration, parts.validation))


def test_split_puts_no_document_into_two_parts() -> None:
    data = activations(documents=True)
    assert data.documents is not None
    parts = split(data, 0.2, 0)
    seen = [set(data.documents[rows].tolist()) for rows in (parts.train, parts.calibration, parts.validation)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert len(parts.calibration) == pytest.approx(100, abs=40)


def test_split_follows_the_seed() -> None:
    first, second, other = (split(activations(), 0.2, seed) for seed in (1, 1, 2))
    assert (first.train == second.train).all() and not np.array_equal(first.train, other.train)


def test_split_refuses_too_few_rows() -> None:
    for n in (2, 10):  # ten rows would leave one to measure, which has no variance
        with pytest.raises(ValueError, match=rf"x\.npy has {n} rows in {n} documents, too few to hold out 10%"):
            split(activations(n), 0.1, 0)


def test_split_refuses_no_rows() -> None:
    with pytest.raises(ValueError, match=r"x\.npy holds no rows; give more activations"):
        split(Activations(Path("x.npy"), [Shard(np.zeros((0, 3), np.float32))]), 0.1, 0)


@pytest.mark.parametrize("count", [3, 5, 10])
def test_split_gives_each_part_one_of_a_few_documents(count: int) -> None:
    ids = np.repeat(np.arange(count), 100).astype(np.int32)
    data = Activations(Path("x.npy"), [Shard(np.ones((len(ids), 3), np.float32), documents=ids)])
    parts = split(data, 0.1, 0)
    assert (len(parts.calibration), len(parts.validation)) == (100, 100)
    assert len(parts.train) == 100 * (count - 2)


def harvested(seed: int = 0, tokens: int = 0, dtype: type = np.float32, parts: int = 1) -> Activations:
    x: NDArray[Any] = np.random.default_rng(seed).standard_normal((1000, 6)).astype(dtype)
    ids = np.arange(1000, dtype=np.int32)
    word = ids.copy()
    word[637] += tokens
    shards = [
        Shard(*arrays) for arrays in zip(*(np.array_split(a, parts) for a in (x, word, ids // 9, ids % 9)), strict=True)
    ]
    return Activations(Path("acts"), shards)


def test_a_fingerprint_depends_on_the_contents_alone() -> None:
    first = fingerprint(harvested())
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert fingerprint(harvested()) == fingerprint(harvested(parts=3)) == first
    plain = Activations(Path("x.npy"), [Shard(harvested().shards[0].x)])
    others = [harvested(seed=1), harvested(tokens=1), harvested(dtype=np.float16), plain]
    assert len({first, *map(fingerprint, others)}) == 5


def test_a_fingerprint_of_plain_rows_depends_on_their_number_and_on_rows_throughout() -> None:
    def of(x: NDArray[np.float32]) -> str:
        return fingerprint(Activations(Path("x.npy"), [Shard(x)]))

    x = np.random.default_rng(0).standard_normal((5000, 4)).astype(np.float32)
    assert of(x) != of(x[:-1]) and of(x) != of(x.reshape(10_000, 2)) and of(x[:1]) != of(x[1:2])
    for begin in range(0, 5000, 100):  # no run of a hundred rows is overlooked
        changed = x.copy()
        changed[begin : begin + 100] += 1
        assert of(changed) != of(x), begin
