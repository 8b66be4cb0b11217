"""Activations for training: held-out splits, the input scale, and batches in a shuffled order without end."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations import Activations

_MAX_HELD_OUT = 1 << 17  # tokens in each held-out part; more would sharpen no figure
_SCALE_SAMPLE = 1 << 15


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    validation: NDArray[np.int64]


def split(activations: Activations, holdout: float, rng: np.random.Generator) -> Split:
    """Divide the rows: whole documents where they are known, so that no text is on both sides, else single rows.

    Raises:
        ValueError: a part would be empty.
    """
    n = len(activations)
    if n == 0:
        raise ValueError(f"{activations.path} holds no rows; give more activations")
    groups = np.arange(n) if activations.documents is None else activations.documents
    names, group = np.unique(groups, return_inverse=True)
    shuffled = rng.permutation(len(names))
    rank = np.empty(len(names), np.int64)
    rank[shuffled] = np.arange(len(names))
    order = np.argsort(rank[group], kind="stable")  # rows, document by shuffled document
    wanted = min(round(n * holdout), 2 * _MAX_HELD_OUT)
    ends = np.cumsum(np.bincount(group)[shuffled])
    at = int(np.searchsorted(ends, wanted // 2))
    then = min(max(int(np.searchsorted(ends, wanted)), at + 1), len(ends) - 1)  # each part gets a document at least
    first, second = int(ends[at]), int(ends[then])
    parts = Split(train=np.sort(order[second:]), calibration=order[:first], validation=order[first:second])
    if not len(parts.train) or min(len(parts.calibration), len(parts.validation)) < 2:  # one token has no variance
        raise ValueError(
            f"{activations.path} has {n} rows in {len(names)} documents, too few to hold out {holdout:.0%} in two "
            "parts; give more activations or another --holdout"
        )
    return parts


class Batches:
    """Batches of exactly `size` rows, without end; every pass over the rows has a new order.

    `left` holds the rows of this pass that are still to come: with the state of `rng`, all that a checkpoint needs.
    """

    def __init__(self, activations: Activations, rows: NDArray[np.int64], size: int, rng: np.random.Generator) -> None:
        self._activations = activations
        self._rows = rows
        self._size = size
        self._rng = rng
        self.left = np.empty(0, np.int64)
        self.source = {"name": activations.path.name, "rows": len(activations), "d_in": activations.d_in}

    def __next__(self) -> NDArray[np.float32]:
        """The next batch, float32 [size, d_in]."""
        while len(self.left) < self._size:
            self.left = np.concatenate([self.left, self._rng.permutation(self._rows)])
        now, self.left = self.left[: self._size], self.left[self._size :]
        return self._activations.rows(now)


def centre_and_scale(
    activations: Activations, rows: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], float]:
    """Mean of the activations [d_in], and the scale that brings their mean distance from it to sqrt(d_in).

    Raises:
        ValueError: all rows are equal.
    """
    sample = activations.rows(rng.choice(rows, min(len(rows), _SCALE_SAMPLE), replace=False))
    mean = sample.mean(axis=0, dtype=np.float64)
    distance = float(np.linalg.norm(sample - mean, axis=1).mean())
    if distance <= 1e-12 * max(float(np.abs(mean).max()), 1e-12):
        raise ValueError(f"{activations.path}: all rows are equal, there is nothing to fit; harvest another layer")
    return mean.astype(np.float32), float(np.sqrt(activations.d_in)) / distance
