"""The limits of a server, in one place."""

import dataclasses
import math
from dataclasses import dataclass


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

    body: int = 64 << 20
    rows: int = 16_384
    edits: int = 64
    texts: int = 256
    characters: int = 1 << 20
    waiting: int = 1024
    waiting_bytes: int = 512 << 20
    seconds: float = 60.0
    answers: int = 16
    new_tokens: int = 1024

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            limit, whole = getattr(self, field.name), field.name != "seconds"
            kinds = int if whole else int | float
            if not isinstance(limit, kinds) or isinstance(limit, bool) or not 0 < limit < math.inf:
                what = "a whole number" if whole else "a number"
                raise ValueError(f"the limit {field.name} is {what} above 0, got {limit!r}")
