"""The split of stored activations into training rows and held-out rows, and the hash by which they are known again."""

import bisect
import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations
from sae_runtime.train.source import MAX_HELD_OUT, generator

_FINGERPRINT_ROWS = 256


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, ascending."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    validation: NDArray[np.int64]


def split(activations: Activations, holdout: float, seed: int) -> Split:
    """Divide the rows into three parts by documents, or by single rows where the documents are not known.

    All rows of a document are in one part, so that no text is both trained on and held out.

    Args:
        activations: the rows to divide.
        holdout: share of the rows to hold out, half of it for each part; a part holds about MAX_HELD_OUT rows at most.
        seed: decides which documents are held out.

    >>> from pathlib import Path
    >>> from sae_runtime.activations.stored import Shard
    >>> x = np.ones((100, 4), np.float32)
    >>> parts = split(Activations(Path("array"), [Shard(x)]), holdout=0.1, seed=0)
    >>> len(parts.train), len(parts.calibration), len(parts.validation)
    (90, 5, 5)

    Raises:
        ValueError: there are no training rows, or a held-out part has fewer than two.
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
    train, calibration, validation = (np.flatnonzero(part[group] == number) for number in range(3))
    if not len(train) or min(len(calibration), len(validation)) < 2:  # one token has no variance
        raise ValueError(
            f"{activations.path} has {n} rows in {len(sizes)} documents, too few to hold out {holdout:.0%} in two "
            "parts; give more activations or another --holdout"
        )
    return Split(train, calibration, validation)


def fingerprint(activations: Activations) -> str:
    """A hash of 32 hexadecimal digits that tells activations from others of the same shape.

    It covers the shape, every token, document and position, and the stored bytes of 256 evenly spread rows. Another
    text, model, hook or type gives another hash. Another name of the file gives the same hash. So do two plain arrays
    that differ only in rows outside the 256.

    >>> from pathlib import Path
    >>> from sae_runtime.activations.stored import Shard
    >>> fingerprint(Activations(Path("array"), [Shard(np.ones((100, 4), np.float32))]))[:8]
    'b0e225a5'
    """
    digest = hashlib.blake2b(json.dumps([len(activations), activations.d_in]).encode(), digest_size=16)
    for ids in (activations.tokens, activations.documents, activations.positions):
        digest.update(b"-" if ids is None else np.ascontiguousarray(ids).data)
    for row in np.linspace(0, len(activations) - 1, min(len(activations), _FINGERPRINT_ROWS)).astype(np.int64):
        shard = bisect.bisect_right(activations.starts, row) - 1
        x = activations.shards[shard].x[row - activations.starts[shard]]
        digest.update(x.dtype.str.encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
