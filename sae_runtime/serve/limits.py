"""The limits of a server, in one place."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from sae_runtime.serve.errors import TooLarge


def _most(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one request may ask, and how much may wait.

    Attributes:
        body: bytes of a request's body, after it was inflated.
        rows: rows of activations of a request.
        edits: edits of a request; of one text or one [t, d_in], where a request has several.
        texts: texts of a request.
        characters: characters of all texts of a request.
        waiting: requests that wait or run.
        waiting_bytes: bytes of the arrays and texts of these requests.
        seconds: from a request to its answer, at most.
        answers: answers that are written at once.
        new_tokens: tokens of an answer.

    Raises:
        ValueError: a limit is not a number above 0, or is none of whole things.

    >>> Limits(rows=1024).rows
    1024
    """

    body: int = _most(64 << 20, "bytes of a request's body, after it was inflated")
    rows: int = _most(16_384, "rows of activations of a request")
    edits: int = _most(64, "edits of a request; of one text or one [t, d_in], where it has several")
    texts: int = _most(256, "texts of a request")
    characters: int = _most(1 << 20, "characters of all texts of a request")
    waiting: int = _most(1024, "requests that wait or run")
    waiting_bytes: int = _most(512 << 20, "bytes of the arrays and texts of these requests")
    seconds: float = _most(60.0, "from a request to its answer")
    answers: int = _most(16, "answers that are written at once")
    new_tokens: int = _most(1024, "tokens of an answer")

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            limit, whole = getattr(self, one.name), one.name != "seconds"
            kinds = int if whole else int | float
            if not isinstance(limit, kinds) or isinstance(limit, bool) or not 0 < limit < math.inf:
                what = "a whole number" if whole else "a number"
                raise ValueError(f"the limit {one.name} is {what} above 0, got {limit!r}")

    def check(self, **asked: int) -> None:
        """Refuse more than a limit.

        Args:
            asked: numbers by the name of their limit.

        Raises:
            TooLarge: one exceeds its limit.

        >>> Limits().check(rows=16_385)
        Traceback (most recent call last):
        sae_runtime.serve.errors.TooLarge: 16385 rows were given, and this server takes 16384; give fewer at once
        """
        for name, number in asked.items():
            if number > (most := getattr(self, name)):
                raise TooLarge(f"{number} {name} were given, and this server takes {most}; give fewer at once")
