"""Endless batches, made ahead of their use. Shuffled blocks fill a pool, and the rows of the pool are shuffled again.

The order is a function of the seed, the pass and the pool, so three integers are enough to resume a run. One thread
fills the next pool and another makes the next batch while a step computes.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.train.source import Source, generator
from sae_runtime.train.world import World


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


class Batches:
    """Batches of `size` scaled rows on a device; of several processes, each gets its part of every batch.

    Every pass gives each row once, in a new order. A batch may hold the end of one pool and the beginning of the next.
    `place` is the position of the next batch, and may be set before the first. At most two pools are in memory. A pool
    that holds all rows is read from the source once and stays the only one.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        seed: int,
        *,
        scale: float = 1.0,
        device: torch.device | None = None,
        world: World | None = None,
    ) -> None:
        self.source = source
        self.place = Place()
        self._size = size
        self._seed = seed
        self._scale = np.float32(scale)
        world = world or World()
        part = world.part(size)
        self._part = slice(world.rank * part, (world.rank + 1) * part)
        self._device = device or torch.device("cpu")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="batches")
        self._closed = threading.Event()
        self._pool: _Pool | None = None
        self._coming: Future[_Pool] | None = None
        self._all_rows: NDArray[np.float32] | None = None  # once a pool has held all of them
        self._ahead: Future[tuple[Tensor, Place]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the threads and free the pools; a pool that is being filled stops after its present part."""
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)
        self._pool = self._coming = self._all_rows = self._ahead = None  # measuring the fit needs memory

    def next(self, left: int) -> Tensor:
        """This process's part of the next batch, float32 [size / processes, d_in].

        Args:
            left: batches that the run still takes, this one included; no more than these are made ahead.

        Raises:
            ValueError: `take` of the source refuses a row.
        """
        if self._ahead is None:
            self._ahead = self._threads.submit(self._made, self.place, left)
        batch, self.place = self._ahead.result()
        self._ahead = self._threads.submit(self._made, self.place, left - 1) if left > 1 else None
        return batch

    def _made(self, place: Place, left: int) -> tuple[Tensor, Place]:
        """The batch that begins at a place, and the place of the batch after it."""
        batch = np.empty((self._size, self.source.d_in), np.float32)
        filled = 0
        while filled < self._size:
            pool = self._pool_at(place, left * self._size - filled)
            rows = pool.order[place.given : place.given + self._size - filled]
            pool.rows.take(rows, axis=0, out=batch[filled : filled + len(rows)], mode="clip")  # "raise" would copy
            filled += len(rows)
            place = replace(place, given=place.given + len(rows))
            if place.given == len(pool.order):
                place = pool.following
        batch *= self._scale
        x = torch.from_numpy(batch[self._part])
        if self._device.type == "cuda":
            x = x.pin_memory()
        return x.to(self._device, non_blocking=True), place

    def _pool_at(self, place: Place, wanted: int) -> _Pool:
        """The pool of a place; a thread starts to fill the next one where the run wants more rows than are left."""
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
            order = generator(self._seed, "order", place.epoch).permutation(self.source.units)
            rows, units = self.source.take(order[place.begin :], self._tick)
            if units == self.source.units:
                self._all_rows = rows
        end = place.begin + units
        following = Place(place.epoch, end) if end < self.source.units else Place(place.epoch + 1)
        order = generator(self._seed, "rows", place.epoch, place.begin).permutation(len(rows))
        return _Pool(rows, order, replace(place, given=0), following)

    def _tick(self, _rows: int) -> None:
        if self._closed.is_set():
            raise _Closed
