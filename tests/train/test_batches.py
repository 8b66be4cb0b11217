import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations, Shard
from sae_runtime.train.batches import Batches, Place
from sae_runtime.train.held_out import Split
from sae_runtime.train.source import Tick
from sae_runtime.train.stored_rows import BLOCK, StoredRows

FOREVER = 10**6


def source(n: int, pool_rows: int) -> StoredRows:
    """Rows whose first number is their own."""
    x = np.stack([np.arange(n), np.ones(n)], axis=1).astype(np.float32)
    held_out = np.arange(0)
    return StoredRows(Activations(Path("x.npy"), [Shard(x)]), Split(np.arange(n), held_out, held_out), pool_rows)


def taken(batches: Batches, count: int) -> list[list[int]]:
    with batches:
        return [batches.next(count - i)[:, 0].int().tolist() for i in range(count)]


# All rows in one pool; in pools that the batch does not divide; in pools smaller than a batch.
@pytest.mark.parametrize("pool_rows", [10**6, 4 * BLOCK, BLOCK])
def test_every_pass_gives_every_row_once_in_a_new_order(pool_rows: int) -> None:
    rows = [row for batch in taken(Batches(source(1000, pool_rows), 100, 0), 30) for row in batch]
    passes = [rows[begin : begin + 1000] for begin in (0, 1000, 2000)]
    assert all(sorted(one) == list(range(1000)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_a_batch_may_be_larger_than_a_pass() -> None:
    (batch,) = taken(Batches(source(7, 10**6), 20, 0), 1)
    assert sorted(batch[:7]) == sorted(batch[7:14]) == list(range(7)) and len(batch) == 20


def test_rows_of_one_pool_come_together_and_shuffled() -> None:
    rows = [row for batch in taken(Batches(source(64 * BLOCK, 16 * BLOCK), BLOCK, 0), 64) for row in batch]
    pools = [rows[begin : begin + 16 * BLOCK] for begin in range(0, len(rows), 16 * BLOCK)]
    blocks = [{row // BLOCK for row in pool} for pool in pools]
    assert [len(one) for one in blocks] == [16] * 4 and len(set.union(*blocks)) == 64
    assert all(max(one) - min(one) > 16 for one in blocks), "the blocks of a pool come from everywhere"
    first = [row // BLOCK for row in rows[:BLOCK]]
    assert len(set(first)) > 8, "and a batch takes rows of many"


@pytest.mark.parametrize("pool_rows", [10**6, 3 * BLOCK, BLOCK])
def test_three_integers_are_enough_to_continue(pool_rows: int) -> None:
    whole = taken(Batches(source(500, pool_rows), 90, 5), 20)
    for stop in range(1, 20):
        before = Batches(source(500, pool_rows), 90, 5)
        with before:
            for i in range(stop):
                before.next(20 - i)
        after = Batches(source(500, pool_rows), 90, 5)
        after.place = Place(before.place.epoch, before.place.begin, before.place.given)
        assert taken(after, 20 - stop) == whole[stop:]


def test_batches_follow_the_seed() -> None:
    first, second, other = (taken(Batches(source(300, 100), 50, seed), 6) for seed in (1, 1, 2))
    assert first == second != other


def test_batches_are_scaled() -> None:
    with Batches(source(64, 64), 64, 0, scale=0.25) as batches:
        assert batches.next(1).sum().item() == 0.25 * (63 * 32 + 64)


class Counted(StoredRows):
    """Counts its pools, and may wait in the middle of one."""

    pools = 0
    wait: threading.Event | None = None

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        self.pools += 1
        if self.wait is not None and self.pools > 1:
            self.wait.wait(30)
            tick(0)
            raise AssertionError("went on after the end")
        return super().take(order, tick)


def counted(n: int, pool_rows: int) -> Counted:
    made = source(n, pool_rows)
    made.__class__ = Counted
    assert isinstance(made, Counted)
    return made


def test_the_next_pool_is_filled_ahead_and_none_after_the_last() -> None:
    data = counted(4 * BLOCK, BLOCK)
    with Batches(data, BLOCK // 2, 0) as batches:
        batches.next(6)  # three pools
        deadline = time.monotonic() + 30
        while data.pools < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert data.pools == 2
        for left in range(5, 0, -1):
            batches.next(left)
    assert data.pools == 3


def test_all_rows_in_one_pool_are_taken_once() -> None:
    data = counted(300, 10**6)
    taken(Batches(data, 100, 0), 9)
    assert data.pools == 1


def test_leaving_the_block_frees_the_pools() -> None:
    made: list[weakref.ref[NDArray[np.float32]]] = []

    class Watched(StoredRows):
        def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
            rows, units = super().take(order, tick)
            made.append(weakref.ref(rows))
            return rows, units

    for pool_rows in (10**6, BLOCK):
        data = source(4 * BLOCK, pool_rows)
        data.__class__ = Watched
        with Batches(data, BLOCK, 0) as batches:
            batches.next(FOREVER)
        del data
        gc.collect()
        assert made and all(one() is None for one in made) and batches.place.given + batches.place.begin


def test_leaving_the_block_does_not_wait_for_the_next_pool() -> None:
    data = counted(4 * BLOCK, BLOCK)
    data.wait = threading.Event()
    with Batches(data, BLOCK, 0) as batches:
        batches.next(FOREVER)
        threading.Timer(0.05, data.wait.set).start()
    assert data.pools == 2  # the second was left at its next tick


def test_an_error_of_a_thread_is_raised_by_the_batch_that_needs_the_rows() -> None:
    x = np.ones((4 * BLOCK, 2), np.float32)
    x[200, 1] = np.nan
    rows, none = np.arange(len(x)), np.arange(0)
    data = StoredRows(Activations(Path("x.npy"), [Shard(x)]), Split(rows, none, none), BLOCK)
    with Batches(data, BLOCK, 0) as batches, pytest.raises(ValueError, match=r"^x\.npy: row 200 holds NaN or Inf"):
        for _ in range(4):
            batches.next(FOREVER)
