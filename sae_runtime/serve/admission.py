"""How many requests a plane holds at once, and how many bytes."""

import threading

from sae_runtime.serve.errors import Closing, Full, TooLarge
from sae_runtime.serve.limits import Limits


class Admission:
    """Counts the requests that wait or run. Threads may share it.

    Args:
        limits: of the server.

    Attributes:
        waiting: requests that wait or run.
        waiting_bytes: of the arrays and texts of these requests.
        closing: whether no more are taken.

    >>> admission = Admission(Limits())
    >>> admission.enter(100)
    >>> admission.waiting, admission.waiting_bytes
    (1, 100)
    """

    def __init__(self, limits: Limits) -> None:
        self.waiting, self.waiting_bytes, self.closing = 0, 0, False
        self._limits, self._lock = limits, threading.Lock()

    def close(self) -> None:
        """Take no more."""
        with self._lock:
            self.closing = True

    def check_open(self) -> None:
        """Raise `Closing` if no more are taken."""
        if self.closing:
            raise Closing("the server ends; ask another one")

    def enter(self, size: int) -> None:
        """Count a request of so many bytes; `leave` ends it.

        Raises:
            Closing: the server ends.
            Full: too much waits.
            TooLarge: the request alone is more than may wait.
        """
        with self._lock:
            self.check_open()
            if size > self._limits.waiting_bytes:
                raise TooLarge(f"the request has {size} bytes, and this server holds {self._limits.waiting_bytes}")
            if self.waiting >= self._limits.waiting or self.waiting_bytes + size > self._limits.waiting_bytes:
                raise Full(1.0, f"{self.waiting} requests wait already")
            self.waiting, self.waiting_bytes = self.waiting + 1, self.waiting_bytes + size

    def leave(self, size: int) -> None:
        """End what `enter` counted."""
        with self._lock:
            self.waiting, self.waiting_bytes = self.waiting - 1, self.waiting_bytes - size
