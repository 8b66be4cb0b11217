"""Batches without end, made ahead: shuffled blocks fill a pool, and the rows of a pool are shuffled again.

The order is a function of seed, pass and pool, so that three integers say where a run stands. One thread fills the next
pool and one makes the next batch while a step computes.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.train.data import Source, generator
from sae_runtime.train.world import World


@dataclass(frozen=True)
class Place:
    """Where a batch begins."""

    epoch: int = 0  # passes over the training rows before this one
    begin: int = 0  # units of this pass before its present pool
    given: int = 0  # rows of the pool that were given


@dataclass(frozen=True)
class _Pool:
    rows: NDArray[np.float32]
    order: NDArray[np.int64]
    place: Place
    following: Place


class _Closed(Exception):
    """Ends the filling of a pool that nobody waits for any more."""


class Batches:
    """Batches of exactly `size` rows, scaled, or a part of each, on a device; every pass over the rows has a new order.

    `place` is where the next batch begins, and may be set before the first. Each pass gives every row once; a batch
    may hold the end of one pool or pass and the beginning of the next. At most two pools are held at a time, and one
    where it holds all the rows, which are then taken from their source once.
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
        part = size // world.size
        self._part = slice(world.rank * part, (world.rank + 1) * part)
        self._device = device or torch.device("cpu")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="batches")
        self._closed = threading.Event()
        self._pool: _Pool | None = None
        self._coming: Future[_Pool] | None = None
        self._whole: NDArray[np.float32] | None = None  # the rows of a pool that holds them all
        self._ahead: Future[tuple[Tensor, Place]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the threads; a pool that is being filled is left after its present part."""
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)
        self._pool = self._coming = self._whole = self._ahead = None  # what measures the fit may need their room

    def next(self, left: int) -> Tensor:
        """This process's part of the next batch, float32 [size / processes, d_in].

        Args:
            left: batches that the run will still take, this one included; no more are made ahead.

        Raises:
            ValueError: a row of the source cannot be used, as its `take` says.
        """
        if self._ahead is None:
            self._ahead = self._threads.submit(self._made, self.place, left)
        batch, self.place = self._ahead.result()
        self._ahead = self._threads.submit(self._made, self.place, left - 1) if left > 1 else None
        return batch

    def _made(self, place: Place, left: int) -> tuple[Tensor, Place]:
        """The batch that begins at a place, and where the one after it begins."""
        batch = np.empty((self._size, self.source.d_in), np.float32)
        filled = 0
        while filled < self._size:
            pool = self._pool_at(place, left * self._size - filled)
            rows = pool.order[place.given : place.given + self._size - filled]
            pool.rows.take(rows, axis=0, out=batch[filled : filled + len(rows)], mode="clip")  # "raise" would buffer
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
        """The pool of a place; the next one is begun where the run wants more rows than this one has."""
        if self._pool is None or self._pool.place != replace(place, given=0):
            self._pool = None  # so that two are held, not three
            self._pool = self._coming.result() if self._coming else self._filled(place)
            self._coming = None
        if self._coming is None and wanted > len(self._pool.order) - place.given:
            self._coming = self._threads.submit(self._filled, self._pool.following)
        return self._pool

    def _filled(self, place: Place) -> _Pool:
        rows, units = self._whole, self.source.units
        if rows is None:
            order = generator(self._seed, "order", place.epoch).permutation(self.source.units)
            rows, units = self.source.take(order[place.begin :], self._tick)
            if units == self.source.units:
                self._whole = rows
        end = place.begin + units
        following = Place(place.epoch, end) if end < self.source.units else Place(place.epoch + 1)
        order = generator(self._seed, "rows", place.epoch, place.begin).permutation(len(rows))
        return _Pool(rows, order, replace(place, given=0), following)

    def _tick(self, _rows: int) -> None:
        if self._closed.is_set():
            raise _Closed
