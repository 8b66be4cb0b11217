"""Counts of the work that a plane does: requests and their outcomes, seconds, and how many share a batch."""

import bisect
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Histogram:
    """How many numbers are at most each limit, and their sum.

    >>> histogram = Histogram((1.0, 2.0))
    >>> histogram.add(1.5)
    >>> histogram.add(9.0)
    >>> histogram.below, histogram.total
    ([0, 1, 1], 10.5)
    """

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = limits
        self.below = [0] * (len(limits) + 1)  # of each limit alone; the last are above all
        self.total = 0.0

    def add(self, number: float) -> None:
        """Count a number."""
        self.below[bisect.bisect_left(self.limits, number)] += 1
        self.total += number

    def copy(self) -> "Histogram":
        """The same counts, which go on no more."""
        copied = Histogram(self.limits)
        copied.below, copied.total = list(self.below), self.total
        return copied


class Counts:
    """The work of a plane. Threads may share it; a call takes about a microsecond.

    >>> counts = Counts()
    >>> counts.finished("sae.encode", "ok", 0.002)
    >>> counts.outcomes()
    {('sae.encode', 'ok'): 1}
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: dict[tuple[str, str], int] = defaultdict(int)
        self._seconds: dict[str, Histogram] = {}
        self._requests: dict[str, Histogram] = {}
        self._rows: dict[str, Histogram] = {}

    def finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Count a request that has its answer or its error.

        Args:
            operation: such as "sae.encode", of those that are served. An unknown one, which a caller made up, is none.
            outcome: "ok", or the name of an error's class.
            seconds: since it was accepted.
        """
        with self._lock:
            self._outcomes[operation, outcome] += 1
            self._of(self._seconds, operation, SECONDS).add(seconds)

    def merged(self, operation: str, requests: int, rows: int) -> None:
        """Count a batch of the requests of several callers.

        Args:
            operation: such as "sae.encode".
            requests: that share it.
            rows: rows, texts or tokens in it.
        """
        with self._lock:
            self._of(self._requests, operation, SIZES).add(requests)
            self._of(self._rows, operation, SIZES).add(rows)

    def outcomes(self) -> Mapping[tuple[str, str], int]:
        """The number of requests by operation and outcome."""
        with self._lock:
            return dict(self._outcomes)

    def histograms(self) -> Mapping[str, Mapping[str, Histogram]]:
        """Seconds of requests, and requests and rows of batches, by operation."""
        with self._lock:
            kinds = {"seconds": self._seconds, "requests": self._requests, "rows": self._rows}
            return {kind: {name: one.copy() for name, one in known.items()} for kind, known in kinds.items()}

    @staticmethod
    def _of(known: dict[str, Histogram], operation: str, limits: Sequence[float]) -> Histogram:
        found = known.get(operation)
        if found is None:
            found = known[operation] = Histogram(limits)
        return found
