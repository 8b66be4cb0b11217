"""What a run needs of its training rows: blocks that fill a pool, a sample for the scale, and held-out parts.

`StoredRows` reads the rows from files. `harvest.stream.StreamedRows` computes them with a model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.manifest import LeftOut
from sae_runtime.core.arrays import EQUAL

MAX_HELD_OUT = 1 << 17  # tokens in each held-out part; more would make no measurement more precise
SCALE_SAMPLE = 1 << 15  # rows from which the centre and the scale of the activations are computed

Purpose = Literal["split", "scale", "order", "rows", "weights", "trainer"]
Tick = Callable[[int], object]
"""Gets the number of rows of each part as it is done, in the calling thread. It may raise to stop the work."""


def generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Independent random numbers for each purpose of a run, and for its `numbers`, such as a pass and a pool.

    >>> int(generator(0, "order", 1).integers(100)), int(generator(0, "order", 2).integers(100))
    (20, 97)
    """
    key = (get_args(Purpose).index(purpose), *numbers)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class Source(ABC):
    """A supply of training rows, in units that are taken whole: blocks of neighbouring rows, or documents.

    `take` and `sample` leave out the rows that `left_out` describes.
    """

    path: Path  # named in messages
    model: str | None
    hook: str | None
    transformer_lens_hook: str | None
    d_in: int
    units: int
    identity: Mapping[str, Any]  # JSON that must be equal when a run is resumed
    provenance: Mapping[str, Any]  # JSON for the manifest
    left_out: LeftOut | None = None  # the rows of each part are counted once `sample` and `held_out` were called
    share_left_out: float = 0.0  # of the rows that were looked at; known once `sample` was called

    def hooks(self) -> list[tuple["Source", slice]]:
        """This source as that of each of its hooks alone, as a manifest describes it, and its columns of the rows."""
        return [(self, slice(0, self.d_in))]

    @abstractmethod
    def take(self, order: NDArray[np.int64], tick: Tick) -> tuple[NDArray[np.float32], int]:
        """The rows of the first units of an order, as many as a pool holds.

        Args:
            order: numbers of units.
            tick: called after each part.

        Returns:
            The rows [n, d_in], which do not depend on the order of their units, and the number of units.

        Raises:
            ValueError: a row holds NaN or Inf, or can no longer be read.
        """

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """About SCALE_SAMPLE rows of the training part, [n, d_in]; raises as `take` does."""

    @abstractmethod
    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The calibration and the validation part, [n, d_in] each, read anew by every call; raises as `take` does.

        Each part ends with its rows that are left out, which `left_out.rows` counts.
        """

    def left_out_of(self, part: str) -> int:
        """Number of rows that a part leaves out."""
        return 0 if self.left_out is None else self.left_out.rows.get(part, 0)


def centre_and_scale(sample: NDArray[np.float32], where: Path) -> tuple[NDArray[np.float32], float]:
    """The mean of the rows [d_in], and the scale that makes their mean distance from it sqrt(d_in).

    >>> centre_and_scale(np.array([[0.0, 0.0], [2.0, 0.0]], np.float32), Path("array"))
    (array([1., 0.], dtype=float32), 1.4142135623730951)

    Raises:
        ValueError: all rows are equal; the message names their source, `where`.
    """
    mean = sample.mean(axis=0, dtype=np.float64)
    distance = float(np.linalg.norm(sample - mean, axis=1).mean())
    if distance <= max(EQUAL * float(np.linalg.norm(mean)), 1e-30):  # mere rounding, or too small to scale in float32
        raise ValueError(f"{where}: all rows are equal or nearly 0, there is nothing to fit; harvest another layer")
    return mean.astype(np.float32), float(np.sqrt(sample.shape[1])) / distance
