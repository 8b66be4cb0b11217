"""The split of stored activations into training rows and held-out rows, and the hash by which they are known again."""

import bisect
import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.parts import CONTEXT, divide
from sae_runtime.activations.stored import Activations
from sae_runtime.train.source import MAX_HELD_OUT, generator

_FINGERPRINT_ROWS = 256


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, ascending, and how many rows lie in the gaps between parts of a document."""

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    validation: NDArray[np.int64]
    gaps: int = 0

    def counts(self) -> dict[str, int]:
        """The rows of each part and of the gaps, as the manifest has them.

        >>> Split(np.arange(8), np.arange(8, 10), np.arange(10, 12)).counts()
        {'train': 8, 'calibration': 2, 'validation': 2, 'gaps': 0}
        """
        parts = {name: len(getattr(self, name)) for name in ("train", "calibration", "validation")}
        return {**parts, "gaps": self.gaps}


def split(activations: Activations, holdout: float, seed: int, rows: NDArray[np.int64] | None = None) -> Split:
    """Divide rows into three parts, each within 10 % of what is asked, so that no text is in two of them.

    Documents that are small beside the parts stay whole. Longer ones are cut, with a gap of at least one window of the
    model between different parts. Where the documents are not known, single rows are divided.

    Args:
        activations: they have the rows.
        holdout: share of the rows to hold out, half of it for each part; a part holds about MAX_HELD_OUT rows at most.
        seed: decides which rows are held out.
        rows: the numbers of the rows to divide, ascending; None means all.

    >>> from pathlib import Path
    >>> from sae_runtime.activations.stored import Shard
    >>> x = np.ones((100, 4), np.float32)
    >>> parts = split(Activations(Path("array"), [Shard(x)]), holdout=0.1, seed=0)
    >>> len(parts.train), len(parts.calibration), len(parts.validation)
    (90, 5, 5)

    Raises:
        ValueError: the rows are too few for such parts.
    """
    if rows is None:
        rows = np.arange(len(activations))
    n = len(rows)
    if n == 0:
        raise ValueError(f"{activations.path} holds no rows; give more activations")
    documents = None if activations.documents is None else activations.documents[rows]
    gap = 0 if documents is None else activations.context or CONTEXT
    parts = divide(documents, np.ones(n), held_out_sizes(n, holdout), gap=gap, rng=generator(seed, "split"))
    numbers = [] if parts is None else [rows[parts == part] for part in range(3)]
    if not numbers or min(len(numbers[1]), len(numbers[2])) < 2:  # one token has no variance
        count = None if documents is None else len(np.unique(documents))
        raise ValueError(f"{activations.path} {too_few(n, count, holdout, gap)}")
    train, calibration, validation = numbers
    return Split(train, calibration, validation, n - sum(map(len, numbers)))


def held_out_sizes(rows: float, holdout: float) -> tuple[float, float]:
    """The rows that are asked for calibration and for validation.

    >>> held_out_sizes(1001, holdout=0.1)
    (50, 50)
    """
    wanted = min(round(rows * holdout), 2 * MAX_HELD_OUT)
    return wanted // 2, wanted - wanted // 2


def too_few(rows: int, documents: int | None, holdout: float, gap: int) -> str:
    """The end of a message on rows that cannot be divided, with what is needed.

    Args:
        rows: number of rows.
        documents: number of their documents; None if it is not known.
        holdout: as for `split`.
        gap: rows between two parts of a document.

    >>> too_few(50, documents=1, holdout=0.1, gap=4)
    'has 50 rows in 1 document, too few to hold out 10% in two parts that share no window of 4 tokens; give 100 rows \
or more, or another --holdout'
    """
    apart = f" that share no window of {gap} tokens" if gap else ""
    needed = max(math.ceil(4 / holdout), 25 * gap)
    where = "" if documents is None else f" in {documents} document{'s' * (documents != 1)}"
    return (
        f"has {rows} rows{where}, too few to hold out {holdout:.0%} in two parts{apart}; give "
        f"{needed:,} rows or more, or another --holdout"
    )


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
