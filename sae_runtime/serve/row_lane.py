"""A lane whose requests share tiles: each piece of work is one tile of rows, from as many requests as it holds."""

import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from sae_runtime.serve.scheduler import Job

Piece = tuple[Any, int, int]
"""The work of a request, and which of its rows: from, to."""


class Shares(Protocol):
    """How requests of one kind are computed together.

    Attributes:
        tile: the most rows that are computed at once.
    """

    tile: int

    def kind(self, work: Any) -> Hashable:
        """Only requests of one kind share a tile."""
        ...

    def run(self, pieces: Sequence[Piece]) -> Sequence[Any]:
        """The answers to pieces of one kind, which are at most a tile together."""
        ...

    def whole(self, work: Any, parts: Sequence[Any]) -> Any:
        """The answer to a request, of which these are the answers to its pieces."""
        ...


class RowLane:
    """Merges requests, and cuts those that are longer than a tile. Kinds take turns, and share nothing.

    In a tile small requests come first, and the longer ones share what is left, so that a long request never holds up
    a short one by more than a tile, and goes on itself with every tile.

    Args:
        shares: how requests are computed together.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._arrived = deque[Job]()  # from other threads
        self._kinds: dict[Hashable, list[Job]] = {}

    def put(self, job: Job) -> None:
        """Let a request wait."""
        self._arrived.append(job)

    def ready(self) -> bool:
        """Whether a request waits, or is answered in part."""
        return bool(self._arrived or self._kinds)

    def tick(self) -> None:
        """Compute one tile."""
        while self._arrived:
            job = self._arrived.popleft()
            self._kinds.setdefault(self._shares.kind(job.work), []).append(job)
        if not self._kinds:
            return
        kind = next(iter(self._kinds))
        now = time.monotonic()
        jobs = [job for job in self._kinds.pop(kind) if not job.is_gone(now)]
        taken = allotted([job.rows - job.done for job in jobs], self._shares.tile)
        turn = [(job, rows) for job, rows in zip(jobs, taken, strict=True) if rows or not job.rows]
        self._answer(turn)
        left = [job for job in jobs if not job.future.done()]
        if left:
            self._kinds[kind] = left  # behind the other kinds

    def _answer(self, turn: Sequence[tuple[Job, int]]) -> None:
        pieces = [(job.work, job.done, job.done + rows) for job, rows in turn]
        try:
            parts = self._shares.run(pieces) if pieces else ()
        except Exception as error:  # of one of the requests, which is not known; the runner serves others, and lives on
            if len(turn) == 1:
                turn[0][0].fail(error)
                return
            for one in turn:
                self._answer([one])
            return
        for (job, rows), part in zip(turn, parts, strict=True):
            job.done += rows
            job.parts.append(part)
            if job.done == job.rows:
                try:
                    job.answer(self._shares.whole(job.work, job.parts))
                except Exception as error:  # likewise
                    job.fail(error)

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        for job in [*self._arrived, *(job for jobs in self._kinds.values() for job in jobs)]:
            job.fail(error)
        self._arrived.clear()
        self._kinds.clear()


def allotted(wanted: Sequence[int], most: int) -> list[int]:
    """How many rows each request gets of a tile: all it wants, or an equal share of what the smaller ones leave.

    >>> allotted([16384, 1, 3], 100), allotted([90, 90], 100), allotted([1, 1], 100)
    ([96, 1, 3], [50, 50], [1, 1])
    """
    if sum(wanted) <= most:
        return list(wanted)
    given, left = [0] * len(wanted), most
    order = sorted(range(len(wanted)), key=wanted.__getitem__)  # of equal ones, who came first
    for place, number in enumerate(order):
        share = -(-left // (len(order) - place))
        given[number] = min(wanted[number], share)
        left -= given[number]
    return given
