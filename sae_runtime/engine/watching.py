"""Files that open sessions have mapped, watched for programs that write into them."""

import time
from collections.abc import Callable, Mapping

from sae_runtime.bundle.identity import Identity, identity

_LOOK, _IDLE = 10_000_000, 300_000  # nanoseconds; looking takes some ten thousand


class Watch:
    """Looks at files after runs that read them.

    Attributes:
        files: the identity of each file when it was opened, by path. Replace the mapping as a whole: other threads may
            go through the old one.

    >>> Watch().look(time.monotonic_ns(), print)
    """

    def __init__(self) -> None:
        self.files: Mapping[str, Identity] = {}
        self._looked = self._ended = 0

    def look(self, begun: int, changed: Callable[[str], None]) -> None:
        """After a run, call `changed` with the path of each file that a program wrote into.

        Looking takes time, so it is left out where the last look was within 10 ms, unless the caller did something
        else for 0.3 ms since the last run. A file that took the place of another one does no harm: the open graphs go
        on with the old one.

        Args:
            begun: when the run began, by `time.monotonic_ns`.
            changed: raises an error.
        """
        idle, self._ended = begun - self._ended, time.monotonic_ns()
        if idle < _IDLE and self._ended - self._looked < _LOOK:
            return
        self._looked = 0  # if this look finds a change, so does the next one
        for path, known in self.files.items():
            found = identity(path)
            if found != known and found is not None and found[:2] == known[:2]:
                changed(path)
        self._looked = self._ended
