import re
from collections.abc import Sequence
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
        with pytest.raises(ValueError, match=rf"x\.npy has {n} rows, too few to hold out 10%"):
            split(activations(n), 0.1, 0)


def test_split_refuses_no_rows() -> None:
    with pytest.raises(ValueError, match=r"x\.npy holds no rows; give more activations"):
        split(Activations(Path("x.npy"), [Shard(np.zeros((0, 3), np.float32))]), 0.1, 0)


def documented(sizes: Sequence[int], context: int | None, shuffle: bool = False) -> Activations:
    ids = np.arange(len(sizes)).repeat(sizes).astype(np.int32)
    if shuffle:
        ids = np.random.default_rng(0).permutation(ids)
    return Activations(Path("x.npy"), [Shard(np.ones((len(ids), 3), np.float32), documents=ids)], context=context)


def random_sizes(seed: int) -> list[int]:
    """The lengths of documents: even, by a power law, one or several long ones among short ones, or one alone."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 60))
    kinds: list[NDArray[Any]] = [
        np.full(5 * count, rng.integers(1, 900)),
        (rng.pareto(0.7, count) * 50).clip(1, 30_000).astype(int),
        np.concatenate([rng.integers(3_000, 20_000, 1 + seed % 3), rng.integers(1, 200, count)]),
        rng.integers(10_000, 30_000, 1),
    ]
    return [int(size) for size in kinds[seed % 4]]


@pytest.mark.parametrize("seed", range(200))
def test_parts_are_of_the_shares_that_were_asked_and_a_window_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, context, holdout = random_sizes(seed), int(rng.choice([4, 16, 64])), float(rng.choice([0.04, 0.1, 0.3, 0.7]))
    data = documented(sizes, context, shuffle=seed % 5 == 0)
    assert data.documents is not None
    n = len(data)
    try:
        parts = split(data, holdout, seed)
    except ValueError:
        assert n < 50 * context or n * holdout < 50  # a division with all that is wanted need not exist
        return
    part = np.full(n, -1)
    for number, rows in enumerate((parts.train, parts.calibration, parts.validation)):
        assert (np.diff(rows) > 0).all() and (part[rows] == -1).all()
        part[rows] = number
    asked = np.array([1 - holdout, holdout / 2, holdout / 2]) * n
    found = np.bincount(part + 1, minlength=4)
    assert (np.abs(found[1:] - asked) <= 0.1 * asked + 1).all()
    assert parts.gaps == found[0] and found[0] <= 0.1 * n
    for document in range(len(sizes)):
        inside = part[data.documents == document]
        known = np.flatnonzero(inside >= 0)
        changes = np.flatnonzero(np.diff(inside[known]))
        assert (np.diff(known)[changes] > context).all(), document


def test_documents_that_are_small_beside_a_part_stay_whole() -> None:
    data = documented([17] * 2000, 128)
    assert data.documents is not None
    parts = split(data, 0.1, 0)
    found = [len(np.unique(data.documents[rows])) for rows in (parts.train, parts.calibration, parts.validation)]
    assert sum(found) == 2000 and parts.gaps == 0


def test_long_documents_give_stretches_of_several_places_where_gaps_cost_little() -> None:
    parts = split(documented([100_000], 16), 0.1, 0)
    assert len(np.flatnonzero(np.diff(parts.validation) > 1)) > 20 and parts.gaps <= 4_000


def test_short_and_long_documents_are_held_out_alike() -> None:
    data = documented([20_000] + [20] * 1000, 16)
    assert data.documents is not None
    for seed in range(5):
        held_out = data.documents[split(data, 0.2, seed).validation]
        assert (held_out == 0).mean() == pytest.approx(0.5, abs=0.05)


def test_what_the_seed_holds_out_of_a_long_document_differs() -> None:
    seen = [split(documented([50_000], 16), 0.1, seed).validation for seed in (0, 0, 1)]
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


@pytest.mark.parametrize("left_out", [0.02, 0.6])
def test_only_the_given_rows_are_divided(left_out: float) -> None:
    data = documented([9_000, 40, 70, 5_000, 300], 16)
    assert data.documents is not None
    rows = np.flatnonzero(np.random.default_rng(0).random(len(data)) >= left_out)
    parts = split(data, 0.1, 0, rows)
    found = [parts.train, parts.calibration, parts.validation]
    assert np.isin(np.concatenate(found), rows).all()
    asked = len(rows) * np.array([0.9, 0.05, 0.05])
    np.testing.assert_allclose([len(part) for part in found], asked, rtol=0.1)
    assert sum(parts.counts().values()) == len(rows)


@pytest.mark.parametrize("context", [None, 64])
def test_a_document_that_is_too_short_for_gaps_is_refused(context: int | None) -> None:
    gap = context or 128
    message = f"has {10 * gap} rows in 1 document, too few to hold out 10% .* of {gap} tokens; give {25 * gap:,} rows"
    with pytest.raises(ValueError, match=message):
        split(documented([10 * gap], context), 0.1, 0)
    assert split(documented([25 * gap], context), 0.1, 0).gaps == 2 * gap


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
