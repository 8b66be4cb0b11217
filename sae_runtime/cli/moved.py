"""What the edits of `sae-runtime steer MODEL --text` move: neighbours of a text, an answer, or any output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.cli import texts
from sae_runtime.core.columns import aligned

if TYPE_CHECKING:
    from sae_runtime.model import Model

_LENGTH = 1e-12  # of a vector that has no direction


@dataclass(frozen=True)
class Neighbour:
    """A text of a list as a neighbour of a text, before and after an edit.

    Attributes:
        text: its number in the list.
        ranks: among the list, from 1 on, before and after.
        cosines: to the text, before and after.
    """

    text: int
    ranks: tuple[int, int]
    cosines: tuple[float, float]


def cosines(vectors: NDArray[np.float32], to: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine of each row [n, d] to each row [m, d]: [n, m]; 0 for a vector of length 0.

    >>> cosines(np.eye(2, dtype=np.float32), np.array([[2.0, 0.0]], np.float32)).tolist()
    [[1.0], [0.0]]
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _LENGTH) for x in (vectors.astype(float), to))
    found: NDArray[np.float64] = a @ b.T
    return found


def neighbours(before: NDArray[np.float64], after: NDArray[np.float64], count: int) -> list[Neighbour]:
    """The nearest texts of a list before and after an edit, those that are nearest now first.

    Args:
        before: cosine of each text of the list to the text before, [n].
        after: the same after the edit.
        count: how many of the nearest ones to take, before and after.

    >>> [(one.text, one.ranks) for one in neighbours(np.array([0.9, 0.2, 0.1]), np.array([0.1, 0.2, 0.8]), 1)]
    [(2, (3, 1)), (0, (1, 3))]
    """
    orders = [np.argsort(-values, kind="stable") for values in (before, after)]
    ranks = [np.argsort(order) + 1 for order in orders]
    chosen = sorted({int(text) for order in orders for text in order[:count]}, key=lambda text: ranks[1][text])
    return [
        Neighbour(text, (int(ranks[0][text]), int(ranks[1][text])), (float(before[text]), float(after[text])))
        for text in chosen
    ]


def distance(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float]:
    """How far an output moved: the length of the change by that of the output, and the largest change of a number.

    >>> distance(np.array([3.0, 4.0]), np.array([3.0, 5.0]))
    (0.2, 1.0)
    """
    a, b = before.astype(np.float64), after.astype(np.float64)
    size, change = float(np.linalg.norm(a)), b - a
    relative = float(np.linalg.norm(change)) / max(size, _LENGTH)
    return relative, float(np.abs(change).max(initial=0))


def near_lines(listed: Sequence[str], near: Sequence[Neighbour]) -> Iterator[str]:
    """A table of neighbours: rank and cosine before and after, and the text."""
    rows = [("before", "", "after", "", "")]
    for one in near:
        ranks, values = ([f"#{rank}" for rank in one.ranks], [f"{value:.2f}" for value in one.cosines])
        rows.append((ranks[0], values[0], ranks[1], values[1], texts.one_line(listed[one.text], texts.columns() - 30)))
    yield from aligned(rows, right=[0, 1, 2, 3])
