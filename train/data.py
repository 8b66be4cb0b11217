"""Sources of training rows: held-out parts, the input scale, and blocks of rows that fill a pool."""

import bisect
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations

MAX_HELD_OUT = 1 << 17  # tokens in each held-out part; more would make no measurement more precise
SCALE_SAMPLE = 1 << 15  # rows from which the centre and the scale of the activations are computed
BLOCK = 64  # neighbouring rows that are read together: 100 KB at d_in 384, which a disk reads at full speed
_READ = 1 << 13  # rows of one read; so many rows are in memory twice while a pool is filled
_FINGERPRINT_ROWS = 256
_PURPOSES = ("split", "scale", "order", "rows", "weights", "trainer")

Purpose = Literal["split", "scale", "order", "rows", "weights", "trainer"]
Tick = Callable[[int], object]


def generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Independent random numbers for each purpose of a run, and for its `numbers`, such as a pass and a pool.

    >>> int(generator(0, "order", 1).integers(100)), int(generator(0, "order", 2).integers(100))
    (20, 97)
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PURPOSES.index(purpose), *numbers)))


class Source(ABC):
    """A supply of training rows, in units that are taken whole: blocks of neighbouring rows, or documents."""

    path: Path  # named in messages
    model: str | None
    hook: str | None
    d_in: int
    units: int
    identity: Mapping[str, Any]  # JSON that must be equal when a run is resumed
    provenance: Mapping[str, Any]  # JSON for the manifest

    @abstractmethod
    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """The rows of the first units of an order, as many as a pool holds.

        Args:
            order: numbers of units.
            tick: gets the number of rows of each part as it is done, in the calling thread; it may raise to stop.

        Returns:
            The rows [n, d_in], which do not depend on the order of their units, and the number of units.
        """

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """About SCALE_SAMPLE rows of the training part, [n, d_in]."""

    @abstractmethod
    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The calibration and the validation part, [n, d_in] each; every call reads them anew."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, ascending."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    validation: NDArray[np.int64]


def split(activations: Activations, holdout: float, seed: int) -> Split:
    """Divide the rows into three parts by documents, or by single rows where the documents are not known.

    All rows of a document are in one part, so that no text is both trained on and held out.

    >>> from sae_runtime.activations.stored import Shard
    >>> x = np.ones((100, 4), np.float32)
    >>> parts = split(Activations(Path("array"), [Shard(x)]), holdout=0.1, seed=0)
    >>> len(parts.train), len(parts.calibration), len(parts.validation)
    (90, 5, 5)

    Raises:
        ValueError: a part would be empty.
    """
    n = len(activations)
    if n == 0:
        raise ValueError(f"{activations.path} holds no rows; give more activations")
    if activations.documents is None:
        group, sizes = np.arange(n), np.ones(n, np.int64)
    else:
        _, group, sizes = np.unique(activations.documents, return_inverse=True, return_counts=True)
    shuffled = generator(seed, "split").permutation(len(sizes))
    wanted = min(round(n * holdout), 2 * MAX_HELD_OUT)
    ends = np.cumsum(sizes[shuffled])
    last = int(np.searchsorted(ends, wanted // 2))  # the last document of the calibration part
    last_held_out = min(max(int(np.searchsorted(ends, wanted)), last + 1), len(ends) - 1)  # each part gets a document
    part = np.zeros(len(sizes), np.int8)
    part[shuffled[: last + 1]], part[shuffled[last + 1 : last_held_out + 1]] = 1, 2
    part = part[group]
    train, calibration, validation = (np.flatnonzero(part == number) for number in range(3))
    if not len(train) or min(len(calibration), len(validation)) < 2:  # one token has no variance
        raise ValueError(
            f"{activations.path} has {n} rows in {len(sizes)} documents, too few to hold out {holdout:.0%} in two "
            "parts; give more activations or another --holdout"
        )
    return Split(train, calibration, validation)


def fingerprint(activations: Activations) -> str:
    """A hash of 32 hexadecimal digits that tells activations from others of the same shape.

    It covers the shape, every token, document and position, and the stored bytes of 256 evenly spread rows. Another
    text, model, hook or type gives another hash, and another name does not. Two plain arrays that differ in other rows
    only have the same hash.
    """
    digest = hashlib.blake2b(json.dumps([len(activations), activations.d_in]).encode(), digest_size=16)
    for ids in (activations.tokens, activations.documents, activations.positions):
        digest.update(b"-" if ids is None else np.ascontiguousarray(ids).data)
    for row in np.linspace(0, len(activations) - 1, min(len(activations), _FINGERPRINT_ROWS)).astype(np.int64):
        shard = bisect.bisect_right(activations.starts, row) - 1
        x = activations.shards[shard].x[row - activations.starts[shard]]
        digest.update(x.dtype.str.encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


class StoredRows(Source):
    """The Source of activations that are stored in files or in memory."""

    def __init__(self, activations: Activations, parts: Split, pool_rows: int) -> None:
        """Read from activations in a split; a pool holds about `pool_rows` rows."""
        self.path, self.d_in = activations.path, activations.d_in
        self.model, self.hook = activations.model, activations.hook
        self.units = math.ceil(len(parts.train) / BLOCK)
        self._activations = activations
        self._parts = parts
        self._check_files()
        known = {"fingerprint": fingerprint(activations)}
        shape = {"rows": len(activations), "d_in": self.d_in}
        self.identity = {"name": self.path.name, **shape, "model": self.model, "hook": self.hook, **known}
        rows = {part.name: len(getattr(parts, part.name)) for part in fields(parts)}
        self.provenance = {"activations": self.path.name, "rows": rows, **known}
        pools = math.ceil(self.units / max(pool_rows // BLOCK, 1))
        self._pool_units = math.ceil(self.units / pools)  # pools of one size: a short last pool would be shuffled less

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """As Source.

        Raises:
            ValueError: a row holds NaN or Inf, or a file became shorter than it was when it was opened.
        """
        units = np.sort(order[: self._pool_units])
        numbers = (units[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        rows = self._parts.train[numbers[numbers < len(self._parts.train)]]
        self._check_files()
        x = np.empty((len(rows), self.d_in), np.float32)
        for begin in range(0, len(rows), _READ):
            x[begin : begin + _READ] = self._activations.rows(rows[begin : begin + _READ])
            tick(len(rows[begin : begin + _READ]))
        return x, len(units)

    def sample(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """As Source."""
        rows = self._parts.train
        self._check_files()
        return self._activations.rows(rng.choice(rows, min(len(rows), SCALE_SAMPLE), replace=False))

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As Source."""
        self._check_files()
        return self._activations.rows(self._parts.calibration), self._activations.rows(self._parts.validation)

    def _check_files(self) -> None:
        """Raise ValueError where a mapped file became shorter: reading beyond its end would kill the process."""
        for shard in self._activations.shards:
            if isinstance(shard.x, np.memmap) and shard.x.filename is not None:
                path = Path(shard.x.filename)
                if not path.exists():
                    continue  # a removed file stays mapped
                if path.stat().st_size < shard.x.offset + shard.x.nbytes:
                    raise ValueError(f"{path} became shorter while it was read: truncated; copy it again")


def centre_and_scale(sample: NDArray[np.float32], where: Path) -> tuple[NDArray[np.float32], float]:
    """The mean of the rows [d_in], and the scale that makes their mean distance from it sqrt(d_in).

    >>> centre_and_scale(np.array([[0.0, 0.0], [2.0, 0.0]], np.float32), Path("array"))
    (array([1., 0.], dtype=float32), 1.4142135623730951)

    Raises:
        ValueError: all rows are equal; the message names their source, `where`.
    """
    mean = sample.mean(axis=0, dtype=np.float64)
    distance = float(np.linalg.norm(sample - mean, axis=1).mean())
    if distance <= max(1e-12 * float(np.abs(mean).max()), 1e-30):  # mere rounding, or too small to scale in float32
        raise ValueError(f"{where}: all rows are equal or nearly 0, there is nothing to fit; harvest another layer")
    return mean.astype(np.float32), float(np.sqrt(sample.shape[1])) / distance
