import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, Shard, open_activations
from sae_runtime.train.held_out import Split, fingerprint, split
from sae_runtime.train.source import centre_and_scale, generator
from sae_runtime.train.stored_rows import BLOCK, StoredRows


def activations(n: int = 1000, documents: bool = False) -> Activations:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (n, 3)).astype(np.float32)
    x[:, 0] = np.arange(n)
    ids = np.sort(rng.integers(0, n // 10, n)).astype(np.int32) if documents else None
    return Activations(Path("x.npy"), [Shard(x, documents=ids)])


def stored(data: Activations, pool_rows: int, rows: Any = None) -> StoredRows:
    train = np.arange(len(data)) if rows is None else rows
    return StoredRows(data, Split(train, np.arange(5), np.arange(5, 10)), pool_rows)


def ignore(_rows: int) -> None:
    pass


def test_generator_gives_each_purpose_its_own_random_numbers() -> None:
    first = [generator(3, "order", 1).random(), generator(3, "order", 1).random()]
    others = [generator(4, "order", 1), generator(3, "rows", 1), generator(3, "order", 2), generator(3, "order")]
    assert first[0] == first[1] and len({first[0], *(other.random() for other in others)}) == 5


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


def test_a_pool_is_blocks_of_neighbouring_training_rows_in_the_order_of_the_file() -> None:
    train = np.arange(0, 1000, 2)  # 500 rows, 8 blocks, the last one short
    source = stored(activations(), 3 * BLOCK, train)
    assert source.units == 8
    ticks: list[int] = []
    x, taken = source.take(np.array([5, 0, 7, 1, 2, 3, 4, 6]), ticks.append)
    assert taken == 3
    expected = [*range(0, 128, 2), *range(5 * 128, 6 * 128, 2), *range(7 * 128, 1000, 2)]
    assert x[:, 0].tolist() == expected and sum(ticks) == len(expected)
    again, _ = source.take(np.array([7, 5, 0]), ignore)
    assert np.array_equal(x, again)


def test_pools_of_a_pass_have_one_size() -> None:
    source = stored(activations(), 12 * BLOCK)  # 16 blocks: twice 8, not 12 and 4
    assert source.take(np.arange(16), ignore)[1] == 8
    assert stored(activations(), 1).take(np.arange(16), ignore)[1] == 1
    assert stored(activations(), 10**9).take(np.arange(16), ignore)[1] == 16


def test_a_file_that_became_shorter_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((5000, 8), np.float32))
    source = stored(open_activations(path), 10**6)
    with path.open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(ValueError, match=r"x\.npy became shorter while it was read: truncated; copy it again$"):
        source.take(np.arange(source.units), ignore)
    with pytest.raises(ValueError, match="became shorter"):
        source.sample(np.random.default_rng(0))


def test_scale_brings_the_distance_from_the_mean_to_sqrt_d_in() -> None:
    x = stored(activations(), 10**6).sample(np.random.default_rng(0))
    assert sorted(x[:, 0].tolist()) == list(range(1000))
    mean, scale = centre_and_scale(x, Path("x.npy"))
    assert mean == pytest.approx(x.mean(axis=0), rel=1e-5)
    assert np.linalg.norm((x - mean) * scale, axis=1).mean() == pytest.approx(np.sqrt(3), rel=1e-5)


def test_scale_refuses_equal_rows() -> None:
    with pytest.raises(ValueError, match=r"^x\.npy: all rows are equal"):
        centre_and_scale(np.full((50, 3), 7.3, np.float32), Path("x.npy"))


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
