"""Training rows from activations that are stored, in files or in memory."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations
from sae_runtime.train.divided import LeftOutRows
from sae_runtime.train.held_out import Split, fingerprint
from sae_runtime.train.source import SCALE_SAMPLE, Source, Tick

BLOCK = 64  # neighbouring rows that are read together: 100 KB at d_in 384, which a disk reads at full speed
_READ = 1 << 13  # rows of one read: while a pool is filled, the rows of one read are in memory twice


class StoredRows(Source):
    """The Source of stored activations. Its units are blocks of neighbouring training rows."""

    def __init__(
        self, activations: Activations, parts: Split, pool_rows: int, left_out: LeftOutRows | None = None
    ) -> None:
        """Read from activations in a split; a pool holds about `pool_rows` rows.

        The held-out parts end with their rows of `left_out`. `divided` gives both.
        """
        self.path, self.d_in = activations.path, activations.d_in
        self.model, self.hook = activations.model, activations.hook
        self.transformer_lens_hook = activations.transformer_lens_hook
        self.units = math.ceil(len(parts.train) / BLOCK)
        self._activations = activations
        self._parts = parts
        self._left_out = None if left_out is None else left_out.rows
        if left_out is not None:
            self.left_out, self.share_left_out = left_out.rule, left_out.share
        self._check_files()
        known = {"fingerprint": fingerprint(activations)}
        shape = {"rows": len(activations), "d_in": self.d_in}
        counts = {} if self.left_out is None else {"left out": dict(self.left_out.rows)}
        self.identity = {"name": self.path.name, **shape, "model": self.model, "hook": self.hook, **known, **counts}
        self.provenance = {"activations": self.path.name, "rows": parts.counts(), **known}
        pools = math.ceil(self.units / max(pool_rows // BLOCK, 1))
        self._pool_units = math.ceil(self.units / pools)  # pools of one size: a short last pool would be shuffled less

    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """As Source."""
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
        calibration, validation = self._parts.calibration, self._parts.validation
        if self._left_out is not None:
            calibration = np.concatenate([calibration, self._left_out.calibration])
            validation = np.concatenate([validation, self._left_out.validation])
        return self._activations.rows(calibration), self._activations.rows(validation)

    def _check_files(self) -> None:
        """Raise ValueError where a mapped file became shorter: reading beyond its end would kill the process."""
        for shard in self._activations.shards:
            if isinstance(shard.x, np.memmap) and shard.x.filename is not None:
                path = Path(shard.x.filename)
                # A file that was removed stays mapped.
                if path.exists() and path.stat().st_size < shard.x.offset + shard.x.nbytes:
                    raise ValueError(f"{path} became shorter while it was read: truncated; copy it again")
