"""The division of rows into parts that share no window of text, such as rows to train on and rows to measure on.

A part is the rows that one purpose gets. What is divided are units, whole rows or whole windows of rows, and each unit
has a document. Documents that are small beside the parts stay whole. A longer one is cut, and between two parts of it
lie units that belong to no part, the gap: within a window a model has seen the other rows.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IN_GAP = -1
CONTEXT = 128  # rows of a gap where the length of the windows is not known; the default of harvest
_TOLERANCE = 0.1  # of what was asked: how far a part may be off
_WHOLE = 0.04  # of the smallest part: how far off it may be so that no more documents are cut
_GAPS = 0.04  # of all rows: what gaps may take so that a part has more and shorter stretches
_ORDERS = 200  # of whole documents that are tried where cuts would lose too much
_STRETCHES = 32  # largest number of stretches of a part; more would make no part more even


@dataclass(frozen=True)
class _Line:
    """The units of documents one after the other."""

    units: NDArray[np.int64]  # numbers of the units, document by document
    documents: NDArray[np.int64]  # of each unit
    ends: NDArray[np.float64]  # rows up to and with each unit

    def after(self, rows: float) -> int:
        """The place on the line that lies nearest after so many rows."""
        place = int(np.searchsorted(self.ends, rows))
        before = self.ends[place - 1] if place else 0.0
        return place + bool(place < len(self.ends) and rows - before > self.ends[place] - rows)

    def until(self, place: int) -> float:
        """The rows before a place."""
        return float(self.ends[place - 1]) if place else 0.0


def divide(
    documents: NDArray[np.integer] | None,
    weights: NDArray[np.float64],
    wanted: Sequence[float],
    *,
    gap: int,
    rng: np.random.Generator,
) -> NDArray[np.int8] | None:
    """The part of each unit, int8 [units]: 0 for the rest, 1, 2, ... for the parts that were asked, -1 in a gap.

    Each part, the rest too, is within 10 % of what was asked. Which documents and stretches it has is random.

    Args:
        documents: the document of each unit [units]; None makes every unit a document.
        weights: the rows of each unit, [units].
        wanted: the rows of each part but the rest.
        gap: units between different parts of a document.
        rng: decides what a part has.

    Returns:
        None if no division is that near to what was asked, because the gaps would take too much.

    >>> parts = divide(None, np.ones(100), [10, 20], gap=0, rng=np.random.default_rng(0))
    >>> np.bincount(parts).tolist()
    [70, 10, 20]
    """
    number, sizes = _documents(documents, weights)
    rest = weights.sum() - sum(wanted)
    if rest <= 0 or min(wanted) <= 0:
        return None
    limit = min(*wanted, rest) / 2  # of a document that is not cut, unless nothing else helps
    share = sizes[sizes > limit].sum() / sizes.sum()
    loss = gap * float(weights.max())  # rows of a gap
    stretches = int(min(_GAPS * sizes.sum() / max(3 * loss, 1), share * min(wanted) / max(loss, 1), _STRETCHES))
    none: list[tuple[float, float, int]] = [] if share else [(limit, 1.0, 0)]
    for whole, of_whole, count in [*none, (limit, 1 - share, max(stretches, 1)), (limit, 1.0, 1), (np.inf, 1.0, 1)]:
        parts = _divided(number, weights, sizes, wanted, whole, of_whole, count, gap, rng)
        if _is_near(parts, weights, wanted):
            return parts
    # Few short documents, each of which a gap would take up: some order fills the parts with whole ones.
    for _ in range(_ORDERS):
        of_document, _ = _whole_documents(rng.permutation(len(sizes)), sizes, wanted, 1.0, _TOLERANCE * min(wanted))
        if _is_near(parts := of_document[number], weights, wanted):
            return parts
    return None


def divide_at(
    documents: NDArray[np.integer] | None, units: int, share: float, *, gap: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The first rows and the last rows, which are a share of all: their numbers, ascending.

    Both are within 10 % of what was asked. Rows of one document count as neighbours, wherever they stand.

    Args:
        documents: the document of each row [units]; None makes every row a document.
        units: number of rows.
        share: of the last rows.
        gap: rows between the two where they divide a document.

    Returns:
        None if no division is that near to what was asked.

    >>> first, last = divide_at(np.repeat([0, 1], [20, 80]), 100, 0.25, gap=4)
    >>> len(first), len(last)
    (72, 24)
    """
    line = np.arange(units)
    border = end = units - int(units * share)
    if documents is not None:
        _, first, number = np.unique(documents, return_index=True, return_inverse=True)
        line = np.argsort(first[number], kind="stable")
        borders = np.flatnonzero(np.diff(number[line])) + 1
        border = end = int(min(borders, key=lambda place: abs(place - border), default=units))
        if abs(units - border - units * share) > _TOLERANCE * units * min(share, 1 - share):
            border = round((units - gap) * (1 - share))
            end = border + gap
    asked = units * (1 - share), units * share
    if min(border, units - end) < 1 or any(
        abs(part - rows) > max(_TOLERANCE * rows, 1) for part, rows in zip((border, units - end), asked, strict=True)
    ):
        return None
    return np.sort(line[:border]), np.sort(line[end:])


def _is_near(parts: NDArray[np.int8], weights: NDArray[np.float64], wanted: Sequence[float]) -> bool:
    """Whether every part, the rest too, is within 10 % of what was asked, or within one unit."""
    rows_of_part = np.bincount(parts + 1, weights, minlength=len(wanted) + 2)[1:]
    asked = np.array([weights.sum() - sum(wanted), *wanted])
    return bool(
        (np.abs(rows_of_part - asked) <= np.maximum(_TOLERANCE * asked, weights.max())).all() and rows_of_part.min() > 0
    )


def _documents(
    documents: NDArray[np.integer] | None, weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The document of each unit, numbered from 0, and the rows of each document."""
    if documents is None:
        return np.arange(len(weights), dtype=np.int64), weights
    number: NDArray[np.int64] = np.unique(documents, return_inverse=True)[1].astype(np.int64)
    return number, np.bincount(number, weights).astype(np.float64)


def _divided(
    number: NDArray[np.int64],
    weights: NDArray[np.float64],
    sizes: NDArray[np.float64],
    wanted: Sequence[float],
    limit: float,
    of_whole: float,
    stretches: int,
    gap: int,
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """The part of each unit, which may be far from what was asked.

    Documents of at most `limit` rows fill the share `of_whole` of each part. Stretches of longer documents fill the
    rest, so many for each part.
    """
    rows, loss = float(sizes.sum()), gap * float(weights.max())
    tight = stretches == 1 and 3 * loss > _GAPS * rows  # the held-out rows then lie at an end of a document
    left = 1 - (2 if tight else 3) * stretches * loss / rows  # the gaps take from every part alike
    asked = [max(left, 0.0) * part for part in wanted]
    slack = _WHOLE * min(*wanted, (rows - sum(wanted)) / len(wanted))
    order = rng.permutation(len(sizes))
    of_document, missing = _whole_documents(order[sizes[order] <= limit], sizes, asked, of_whole, slack)
    parts: NDArray[np.int8] = of_document[number]
    if stretches == 0 or not any(missing):
        return parts
    free = order[of_document[order] == 0]
    long = free[sizes[free] > limit]
    if sizes[long].sum() < 2 * (sum(missing) + 3 * loss):
        long = free
    rank = np.full(len(sizes), len(sizes))
    rank[long] = np.arange(len(long))
    units = np.argsort(rank[number], kind="stable")[: int(np.count_nonzero(rank[number] < len(sizes)))]
    line = _Line(units, number[units], np.cumsum(weights[units]))
    parts[units] = _gapped(line, _stretches(line, missing, stretches, gap, loss, tight, rng), gap)
    return parts


def _whole_documents(
    order: NDArray[np.int64], sizes: NDArray[np.float64], asked: Sequence[float], of_whole: float, slack: float
) -> tuple[NDArray[np.int8], list[float]]:
    """The part of each document, 0 for the rest, and the rows that each part still lacks (0 if it is near enough)."""
    of_document = np.zeros(len(sizes), np.int8)
    target = [of_whole * part for part in asked]
    got = [0.0] * len(asked)
    near = min(slack, float(sizes[order].mean()) / 2) if len(order) else 0.0
    for document in order:
        open_parts = [part for part, rows in enumerate(target) if got[part] < rows - near]
        if not open_parts:
            break
        for part in open_parts:
            if got[part] + sizes[document] <= target[part] + slack:
                of_document[document] = part + 1
                got[part] += float(sizes[document])
                break
    lacks = [part - have for part, have in zip(asked, got, strict=True)]
    return of_document, [rows if rows > slack else 0.0 for rows in lacks]


def _stretches(
    line: _Line,
    missing: Sequence[float],
    count: int,
    gap: int,
    loss: float,
    tight: bool,
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """The part of each unit of a line: in every span of the line each part has a stretch at a random place."""
    parts = np.zeros(len(line.units), np.int8)
    span = float(line.ends[-1]) / count
    room = span - sum(missing) / count - (np.count_nonzero(missing) - (count == 1)) * loss
    taken = [0.0] * len(missing)
    place = 0
    for number in range(count):
        phase = rng.integers(2) if tight else rng.random()
        place = max(place, line.after(number * span + phase * max(room, 0.0)))
        for part, rows in enumerate(missing):
            if rows:
                end = line.after(line.until(place) + rows * (number + 1) / count - taken[part])
                parts[place:end] = part + 1
                taken[part] += line.until(end) - line.until(place)
                place = end + gap
    return parts


def _gapped(line: _Line, parts: NDArray[np.int8], gap: int) -> NDArray[np.int8]:
    """The parts with a gap beside each stretch, taken from the rest of its document."""
    made = parts.copy()
    changes = [0, *(np.flatnonzero(np.diff(parts) | np.diff(line.documents)) + 1).tolist(), len(parts)]
    for begin, end in itertools.pairwise(changes):
        if parts[begin]:
            for near in (slice(max(begin - gap, 0), begin), slice(end, end + gap)):
                made[near][(line.documents[near] == line.documents[begin]) & (parts[near] == 0)] = IN_GAP
    return made
