"""Activations for training: held-out splits, the input scale, and rows in blocks, as many as a pool holds."""

import bisect
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations import Activations

MAX_HELD_OUT = 1 << 17  # tokens in each held-out part; more would sharpen no figure
SCALE_SAMPLE = 1 << 15  # rows that say where the activations lie and how far they spread
BLOCK = 64  # neighbouring rows that are read together: 100 KB of width 384, where a disk reads at full speed
_READ = 1 << 13  # rows a read: what is held twice while a pool is filled
_FINGERPRINT_ROWS = 256
_PURPOSES = ("split", "scale", "order", "rows", "weights", "trainer")

Purpose = Literal["split", "scale", "order", "rows", "weights", "trainer"]
Tick = Callable[[int], object]


def generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Random numbers of their own for each purpose (and its `numbers`, such as a pass and a pool) of a run."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PURPOSES.index(purpose), *numbers)))


class Source(Protocol):
    """Where training rows come from, in units that are taken whole: blocks of neighbours, or documents."""

    path: Path  # to speak of
    model: str | None
    hook: str | None
    d_in: int
    units: int
    identity: Mapping[str, Any]  # what a run that goes on must find again, as JSON
    provenance: Mapping[str, Any]  # what the manifest says of it, as JSON

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """Rows [n, d_in] of the first of these units, as many as a pool holds, and how many units they are.

        The rows do not depend on the order of the units that they come from. `tick` is called with the number of
        rows of each part as it is done, from the same thread, and may raise to end it.
        """

    def sample(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """About SCALE_SAMPLE rows of the training part, [n, d_in]."""

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The calibration and the validation part, [n, d_in] each."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, ascending."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    validation: NDArray[np.int64]


def split(activations: Activations, holdout: float, seed: int) -> Split:
    """Divide the rows: whole documents where they are known, so that no text is on both sides, else single rows.

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
    at = int(np.searchsorted(ends, wanted // 2))
    then = min(max(int(np.searchsorted(ends, wanted)), at + 1), len(ends) - 1)  # each part gets a document at least
    part = np.zeros(len(sizes), np.int8)
    part[shuffled[: at + 1]], part[shuffled[at + 1 : then + 1]] = 1, 2
    part = part[group]
    train, calibration, validation = (np.flatnonzero(part == number) for number in range(3))
    if not len(train) or min(len(calibration), len(validation)) < 2:  # one token has no variance
        raise ValueError(
            f"{activations.path} has {n} rows in {len(sizes)} documents, too few to hold out {holdout:.0%} in two "
            "parts; give more activations or another --holdout"
        )
    return Split(train, calibration, validation)


def fingerprint(activations: Activations) -> str:
    """A hash, as 32 hexadecimal digits, that tells activations from others of the same shape, whatever their name.

    It is over their shape, every token, document and position, and the stored bytes of 256 rows, spread evenly: another
    text, model, hook or type gives another one. Plain arrays that differ in other rows only are not told apart.
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
    """The Source of activations that lie in files or in memory."""

    def __init__(self, activations: Activations, parts: Split, pool_rows: int) -> None:
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
        self._at_once = math.ceil(self.units / pools)  # of one size: a short last pool would be shuffled less

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """As Source.

        Raises:
            ValueError: a row holds NaN or Inf, or a file became shorter than it was when it was opened.
        """
        units = np.sort(order[: self._at_once])
        at = (units[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        rows = self._parts.train[at[at < len(self._parts.train)]]
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
        """Reading beyond the end of a mapped file kills the process, so look first."""
        for shard in self._activations.shards:
            if isinstance(shard.x, np.memmap) and shard.x.filename is not None:
                path = Path(shard.x.filename)
                if not path.exists():
                    continue  # removed, but still mapped
                if path.stat().st_size < shard.x.offset + shard.x.nbytes:
                    raise ValueError(f"{path} became shorter while it was read: truncated; copy it again")


def centre_and_scale(sample: NDArray[np.float32], where: Path) -> tuple[NDArray[np.float32], float]:
    """Mean of the rows [d_in], and the scale that brings their mean distance from it to sqrt(d_in).

    Raises:
        ValueError: all rows are equal; the message names `where` they come from.
    """
    mean = sample.mean(axis=0, dtype=np.float64)
    distance = float(np.linalg.norm(sample - mean, axis=1).mean())
    if distance <= max(1e-12 * float(np.abs(mean).max()), 1e-30):  # rounding, or too small to scale in float32
        raise ValueError(f"{where}: all rows are equal or nearly 0, there is nothing to fit; harvest another layer")
    return mean.astype(np.float32), float(np.sqrt(sample.shape[1])) / distance
