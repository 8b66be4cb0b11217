from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_runtime.activations.stored import Activations, Shard, open_activations
from sae_runtime.train.held_out import Split
from sae_runtime.train.stored_rows import BLOCK, StoredRows


def activations(n: int = 1000) -> Activations:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (n, 3)).astype(np.float32)
    x[:, 0] = np.arange(n)
    return Activations(Path("x.npy"), [Shard(x)])


def stored(data: Activations, pool_rows: int, rows: Any = None) -> StoredRows:
    train = np.arange(len(data)) if rows is None else rows
    return StoredRows(data, Split(train, np.arange(5), np.arange(5, 10)), pool_rows)


def ignore(_rows: int) -> None:
    pass


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


def test_a_sample_of_fewer_rows_than_its_size_is_all_training_rows() -> None:
    x = stored(activations(), 10**6).sample(np.random.default_rng(0))
    assert sorted(x[:, 0].tolist()) == list(range(1000))
