"""How a text that is longer than a model's context becomes windows, each with the special tokens around it: the frame.

Harvest cuts documents in this way, and so does a deployed model: a token has the same neighbours in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cut:
    """One window of a text.

    Attributes:
        start, stop: the text's tokens that are in the window, numbered from 0 without special tokens.
        positions: numbers of the window's tokens in the text, [time]. A special token before or after the text has the
            position of the text's nearest token.
        inside: whether the token is the text's and not the frame's, [time].
    """

    start: int
    stop: int
    positions: NDArray[np.int32]
    inside: NDArray[np.bool_]


def room(context: int, framing: int) -> int:
    """Number of a text's tokens that a window holds.

    Args:
        context: largest number of tokens of a window, with the frame.
        framing: number of special tokens around a text.

    Raises:
        ValueError: no token of the text has room.

    >>> room(128, 2)
    126
    """
    if context <= framing:
        raise ValueError(
            f"context is {context} tokens, of which special tokens take {framing}; give at least {framing + 1}"
        )
    return context - framing


def cuts(tokens: int, before: int, after: int, context: int) -> Iterator[Cut]:
    """The windows of a text of so many tokens; none for a text without tokens.

    Args:
        tokens: number of the text's tokens, without special ones.
        before: number of special tokens before a text.
        after: number of special tokens after it.
        context: largest number of tokens of a window, with the frame.

    Raises:
        ValueError: no token of the text has room beside the frame.

    >>> [(cut.start, cut.stop) for cut in cuts(5, before=1, after=1, context=4)]
    [(0, 2), (2, 4), (4, 5)]
    """
    size = room(context, before + after)
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        positions = np.arange(start - before, stop + after, dtype=np.int32)
        yield Cut(start, stop, positions.clip(start, stop - 1), (positions >= start) & (positions < stop))
