"""A lane whose requests share tiles: each piece of work is one tile, from as many requests as it holds."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from sae_runtime.serve.scheduler import Job

Piece = tuple[Any, int, int]
"""The work of a request, and which of its units: from, to."""


class Shares(Protocol):
    """How requests of one kind are computed together. A request has units, such as rows, and is cut between them.

    Attributes:
        tile: the most that is computed at once, by the costs of units. A unit that costs more is computed alone.
    """

    tile: int

    def kind(self, work: Any) -> Hashable:
        """Only requests of one kind share a tile."""
        ...

    def costs(self, work: Any) -> int | Sequence[int]:
        """What each unit costs, or each of them in turn."""
        ...

    def run(self, pieces: Sequence[Piece]) -> Sequence[Any]:
        """The answers to pieces of one kind."""
        ...

    def whole(self, work: Any, parts: Sequence[Any]) -> Any:
        """The answer to a request, of which these are the answers to its pieces."""
        ...


class RowLane:
    """Merges requests, and cuts those that are longer than a tile. Kinds take turns, and share nothing.

    Of a tile the oldest request gets a unit, then the small ones all they want, and the longer ones share what is left.
    Behind a tile that one of the long ones filled, the small ones get a tile of their own, which is soon done. So a
    long request never holds up a short one by more than a tile, and goes on itself with every second one at least.

    Args:
        shares: how requests are computed together.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self.merged: Callable[..., None] | None = None  # is told the requests and rows of each tile
        self._arrived = deque[Job]()  # from other threads
        self._kinds: dict[Hashable, list[Job]] = {}
        self._filled = set[Hashable]()  # kinds of which a request longer than a tile had a part of the last one

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
        wanted = [_left(job, self._shares.costs(job.work)) for job in jobs]
        small = [self._total(job) <= self._shares.tile for job in jobs]
        if kind in self._filled and any(small):
            own = [one for one, is_small in zip(wanted, small, strict=True) if is_small]
            given = iter(allotted(own, self._shares.tile))
            units = [next(given) if is_small else 0 for is_small in small]
        else:
            units = allotted(wanted, self._shares.tile)
        self._filled.discard(kind)
        self._answer([(job, taken) for job, taken in zip(jobs, units, strict=True) if taken or not job.rows])
        left = [job for job in jobs if not job.future.done()]
        if left:
            self._kinds[kind] = left  # behind the other kinds
            if any(taken and not is_small for taken, is_small in zip(units, small, strict=True)):
                self._filled.add(kind)

    def _answer(self, turn: Sequence[tuple[Job, int]]) -> None:
        pieces = [(job.work, job.done, job.done + units) for job, units in turn]
        try:
            parts = self._shares.run(pieces) if pieces else ()
        except Exception as error:  # of one of the requests, which is not known; the runner serves others, and lives on
            if len(turn) == 1:
                turn[0][0].fail(error)
                return
            for one in turn:
                self._answer([one])
            return
        if self.merged is not None and pieces:
            self.merged(requests=len(turn), rows=sum(self._cost(job, units) for job, units in turn))
        for (job, units), part in zip(turn, parts, strict=True):
            job.done += units
            job.parts.append(part)
            if job.done == job.rows:
                try:
                    job.answer(self._shares.whole(job.work, job.parts))
                except Exception as error:  # likewise
                    job.fail(error)

    def _cost(self, job: Job, units: int) -> int:
        """What units behind those that are done cost."""
        costs = self._shares.costs(job.work)
        return units * costs if isinstance(costs, int) else sum(costs[job.done : job.done + units])

    def _total(self, job: Job) -> int:
        """What the whole request costs."""
        costs = self._shares.costs(job.work)
        return job.rows * costs if isinstance(costs, int) else sum(costs)

    def fail(self, error: Exception) -> None:
        """End all requests with an error."""
        for job in [*self._arrived, *(job for jobs in self._kinds.values() for job in jobs)]:
            job.fail(error)
        self._arrived.clear()
        self._kinds.clear()
        self._filled.clear()


Wanted = tuple[int, int] | Sequence[int]
"""The costs of the units that are left of a request: their number and the cost of each, or each of them."""


def _left(job: Job, costs: int | Sequence[int]) -> Wanted:
    return (job.rows - job.done, costs) if isinstance(costs, int) else list(costs[job.done :])


def allotted(wanted: Sequence[Wanted], most: int) -> list[int]:
    """How many units each request gets of a tile, by what they cost together.

    The first one gets a unit, whatever it costs; then the small ones all they want, and the others equal shares; what
    is left goes to whom it suffices.

    Args:
        wanted: by each request, in the order in which they came.
        most: the tile.

    >>> allotted([(16384, 1), (1, 1), (3, 1)], 100), allotted([(90, 1), (90, 1)], 100)
    ([96, 1, 3], [51, 49])
    >>> allotted([(1, 80), (1, 80), (1, 10)], 100), allotted([[200, 5], [5]], 100)
    ([1, 0, 1], [1, 0])
    """
    totals = [one[0] * one[1] if isinstance(one, tuple) else sum(one) for one in wanted]
    if sum(totals) <= most:
        return [one[0] if isinstance(one, tuple) else len(one) for one in wanted]
    given, left = [0] * len(wanted), most
    order = sorted(range(len(wanted)), key=totals.__getitem__)  # of equal ones, who came first

    def give(number: int, budget: int) -> None:
        nonlocal left
        units, cost = _within(wanted[number], given[number], budget)
        given[number] += units
        left -= cost

    give(0, max(_cost_of_first(wanted[0]), 0))
    for place, number in enumerate(order):
        give(number, -(-left // (len(order) - place)))
    for number in range(len(wanted)):
        if left <= 0:
            break
        give(number, left)
    return given


def _cost_of_first(wanted: Wanted) -> int:
    return wanted[1] if isinstance(wanted, tuple) else next(iter(wanted), 0)


def _within(wanted: Wanted, begin: int, budget: int) -> tuple[int, int]:
    """The number of units from one on that a budget pays, and what they cost."""
    if isinstance(wanted, tuple):
        units = max(min(wanted[0] - begin, budget // wanted[1]), 0)
        return units, units * wanted[1]
    units = paid = 0
    for cost in wanted[begin:]:
        if paid + cost > budget:
            break
        units, paid = units + 1, paid + cost
    return units, paid
