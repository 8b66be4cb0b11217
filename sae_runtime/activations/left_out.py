"""Rows of massive norm: which ones scale, training, calibration and figures leave out.

An attention sink, often the first token of a text, can have 100 to 1,000 times the norm of other tokens. One such row
in 64 owns every mean, every sum of squares and every batch's matches, and figures say nothing about the other rows.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.progress import progress_bar

MAX_NORM = 10.0  # the default multiple of the median norm
_MANY = 0.05  # a larger share of the rows is perhaps no exception
_ELEMENTS = 1 << 22  # numbers that are in memory at once

Mask = NDArray[np.bool_]


class ManyRowsLeftOut(UserWarning):
    """So many rows have a massive norm that they may be an ordinary group."""


def norms(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The Euclidean norm of each row of x [n, d_in], in float64.

    >>> norms(np.array([[3, 4], [0, 0]], np.float32))
    array([5., 0.])
    """
    sizes, step = np.empty(len(x)), max(_ELEMENTS // x.shape[1], 1)
    for begin in range(0, len(x), step):
        wide = x[begin : begin + step].astype(np.float64)
        sizes[begin : begin + step] = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    return sizes


def limit(norms: NDArray[np.float64], max_norm: float | None) -> float:
    """The norm above which a row is left out: `max_norm` times the median norm of the rows that are not zero.

    Args:
        norms: of all rows, [n].
        max_norm: the multiple; None for no limit.

    Returns:
        The limit; infinity if there is none, or if all rows are zero.

    >>> limit(np.array([0.0, 1.0, 2.0, 900.0]), 10.0)
    20.0
    """
    present = norms[norms > 0]
    return math.inf if max_norm is None or not len(present) else max_norm * float(np.median(present))


def kept_rows(activations: Activations, max_norm: float | None, *, progress: bool = False) -> Mask:
    """Which rows are not left out, bool [n]. All rows are read once, in their order; 8 bytes a row are held.

    Args:
        activations: the rows.
        max_norm: as for `limit`; with None no row is read.
        progress: show the progress on stderr.

    Raises:
        ValueError: there are no rows, or a row holds NaN or Inf.

    >>> from sae_runtime.activations.stored import Shard
    >>> x = np.ones((6, 2), np.float32)
    >>> x[4] = 100
    >>> kept_rows(Activations(Path("array"), [Shard(x)]), 10.0)
    array([ True,  True,  True,  True, False,  True])
    """
    n = len(activations)
    if n == 0:
        raise ValueError(f"{activations.path} holds no rows; give more activations")
    if max_norm is None:
        return np.ones(n, np.bool_)
    sizes, step = np.empty(n), max(_ELEMENTS // activations.d_in, 1)
    with progress_bar(n, "rows looked at", shown=progress) as bar:
        for begin in range(0, n, step):
            part = activations.slice(begin, min(begin + step, n))
            sizes[begin : begin + len(part)] = norms(part)
            bar.update(len(part))
    return sizes <= limit(sizes, max_norm)


def shared_out(
    kept: Mask, parts: Sequence[NDArray[np.int64]], documents: NDArray[np.int32] | None
) -> list[NDArray[np.int64]]:
    """The left-out rows that belong to each part of the kept rows.

    A left-out row belongs to the part of the next kept row. If that row is of another document, the kept row before it
    counts, where that one is of the same document. A row whose neighbour is in no part is in none.

    Args:
        kept: which rows are kept, [n].
        parts: numbers of kept rows, ascending, for each part.
        documents: the document of each row, [n], or None.

    >>> shared_out(np.array([True, False, True, False]), [np.array([0]), np.array([2])], None)
    [array([], dtype=int64), array([1, 3])]
    """
    here, left = np.flatnonzero(kept), np.flatnonzero(~kept)
    part = np.full(len(kept), -1, np.int64)
    for number, rows in enumerate(parts):
        part[rows] = number
    place = np.searchsorted(here, left)
    neighbour = here[np.minimum(place, len(here) - 1)]
    if documents is not None:
        before = here[np.maximum(place - 1, 0)]
        only_before = (documents[neighbour] != documents[left]) & (documents[before] == documents[left])
        neighbour = np.where(only_before, before, neighbour)
    return [left[part[neighbour] == number] for number in range(len(parts))]


def rule_for(manifest: Manifest, max_norm: float | None = None) -> float | None:
    """The multiple that figures of a bundle use; None for no limit.

    Args:
        manifest: of the bundle, whose own rule is the default. Without one it is MAX_NORM, as it is for a converted
            bundle, whose `left_out` names positions and tokens alone and counts no rows.
        max_norm: another multiple, infinity for no limit; None for the default.

    Raises:
        ValueError: `max_norm` is below 1.

    >>> rule_for(sae.manifest), rule_for(sae.manifest, 50.0), rule_for(sae.manifest, math.inf)
    (10.0, 50.0, None)
    >>> rule_for(sae.manifest, 0.5)
    Traceback (most recent call last):
    ValueError: max_norm must be at least 1 times the median norm, got 0.5; give another multiple, or none
    """
    own = manifest.left_out
    if max_norm is None:
        # That of a converted SAE says which positions and tokens its library left out. It counts no rows.
        known = own is not None and (own.norm_multiple is not None or own.rows)
        return own.norm_multiple if own is not None and known else MAX_NORM
    if max_norm == math.inf:
        return None
    if not max_norm >= 1:
        raise ValueError(
            f"max_norm must be at least 1 times the median norm, got {max_norm:g}; give another multiple, or none"
        )
    return max_norm


def warn_of_many(share: float, max_norm: float | None, where: Path) -> None:
    """Warn with `ManyRowsLeftOut` if the share of the rows that is left out is above 5 %.

    >>> warn_of_many(0.01, 10.0, Path("acts"))
    """
    if share > _MANY:
        warnings.warn(
            f"{where}: {share:.1%} of the rows have more than {max_norm:g} times the median norm and are left out; if "
            "they are an ordinary group of tokens, keep them with a larger --max-norm, or with --max-norm none",
            ManyRowsLeftOut,
            stacklevel=2,
        )
