"""Endless batches, made ahead of their use. Shuffled units of rows fill a pool, whose rows are shuffled again.

The order is a function of the seed, the pass and the pool, so three integers are enough to resume a run. While a step
computes, one thread fills the next pool and another thread makes the next batch.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.train.source import Source, generator
from sae_runtime.train.world import ALONE, World


@dataclass(frozen=True)
class Place:
    """The position where a batch begins."""

    epoch: int = 0  # finished passes over the training rows
    begin: int = 0  # units of this pass that earlier pools took
    given: int = 0  # rows of the pool that earlier batches took


@dataclass(frozen=True)
class _Pool:
    rows: NDArray[np.float32]
    order: NDArray[np.int64]
    place: Place
    following: Place


class _Closed(Exception):
    """Stops the filling of a pool that is no longer needed."""


@dataclass
class Batches:
    """Endless batches of scaled rows on a device. If several processes share a batch, each gets its part.

    Every pass gives each row once, in a new order. A batch may hold the end of one pool and the beginning of the next.
    At most two pools are in memory. A pool that holds all rows is read from the source once and stays the only pool.

    Attributes:
        source: of the rows.
        size: rows of a batch, over all processes.
        seed: decides the order of the rows.
        scale: the factor by which the rows are multiplied, or one for each column.
        device: where the batches are needed.
        world: the processes that share every batch.
        place: the position of the next batch; it may be set before the first batch.

    >>> from pathlib import Path
    >>> from sae_runtime.activations.stored import Activations, Shard
    >>> from sae_runtime.train.held_out import split
    >>> from sae_runtime.train.stored_rows import StoredRows
    >>> rows = Activations(Path("array"), [Shard(np.ones((100, 4), np.float32))])
    >>> with Batches(StoredRows(rows, split(rows, 0.1, seed=0), pool_rows=1000), size=16, seed=0) as batches:
    ...     batches.next(left=1).shape
    torch.Size([16, 4])

    Raises:
        ValueError: the processes cannot share `size` rows evenly.
    """

    source: Source
    size: int
    seed: int
    scale: float | NDArray[np.float32] = 1.0
    device: torch.device = torch.device("cpu")
    world: World = ALONE
    place: Place = Place()
    _pool: _Pool | None = field(default=None, init=False)
    _coming: Future[_Pool] | None = field(default=None, init=False)
    _all_rows: NDArray[np.float32] | None = field(default=None, init=False)  # once a pool has held all of them
    _ahead: Future[tuple[Tensor, Place]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        part = self.world.part(self.size)
        self._part = slice(self.world.rank * part, (self.world.rank + 1) * part)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="batches")
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the threads and free the pools. A thread that fills a pool stops after the part that it reads."""
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)
        self._pool = self._coming = self._all_rows = self._ahead = None  # the measurements after the run need memory

    def next(self, left: int) -> Tensor:
        """This process's part of the next batch, float32 [size / processes, d_in].

        Args:
            left: batches that the run still needs, this one included; no further batch is made ahead.

        Raises:
            ValueError: the source refuses a row.
        """
        if self._ahead is None:
            self._ahead = self._threads.submit(self._made, self.place, left)
        batch, self.place = self._ahead.result()
        self._ahead = self._threads.submit(self._made, self.place, left - 1) if left > 1 else None
        return batch

    def _made(self, place: Place, left: int) -> tuple[Tensor, Place]:
        """The batch that begins at a place, and the place of the batch after it."""
        batch = np.empty((self.size, self.source.d_in), np.float32)
        filled = 0
        while filled < self.size:
            pool = self._pool_at(place, left * self.size - filled)
            rows = pool.order[place.given : place.given + self.size - filled]
            pool.rows.take(rows, axis=0, out=batch[filled : filled + len(rows)], mode="clip")  # "raise" would copy
            filled += len(rows)
            place = replace(place, given=place.given + len(rows))
            if place.given == len(pool.order):
                place = pool.following
        batch *= np.asarray(self.scale, np.float32)
        x = torch.from_numpy(batch[self._part])
        if self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True), place

    def _pool_at(self, place: Place, wanted: int) -> _Pool:
        """The pool of a place. If the run wants more rows than it has left, a thread starts to fill the next pool."""
        if self._pool is None or self._pool.place != replace(place, given=0):
            self._pool = None  # freed first, so that two pools are in memory and not three
            self._pool = self._coming.result() if self._coming else self._filled(place)
            self._coming = None
        if self._coming is None and wanted > len(self._pool.order) - place.given:
            self._coming = self._threads.submit(self._filled, self._pool.following)
        return self._pool

    def _filled(self, place: Place) -> _Pool:
        """The pool that begins at a place, with its rows and their shuffled order."""
        rows, units = self._all_rows, self.source.units
        if rows is None:
            order = generator(self.seed, "order", place.epoch).permutation(self.source.units)
            rows, units = self.source.take(order[place.begin :], self._tick)
            if units == self.source.units:
                self._all_rows = rows
        end = place.begin + units
        following = Place(place.epoch, end) if end < self.source.units else Place(place.epoch + 1)
        order = generator(self.seed, "rows", place.epoch, place.begin).permutation(len(rows))
        return _Pool(rows, order, replace(place, given=0), following)

    def _tick(self, _rows: int) -> None:
        if self._closed.is_set():
            raise _Closed
