"""The text of an answer as its tokens come, up to a stop string that is never shown."""

from collections.abc import Sequence


class Stopping:
    """Holds text back while it may be the beginning of a stop string.

    Args:
        stop: the stop strings.

    >>> stopping = Stopping(["###"])
    >>> stopping.push("one #"), stopping.push("# two ##"), stopping.push("# three")
    ('one ', '## two ', '')
    >>> stopping.found
    True
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that may be shown now. After a stop string was found there is none."""
        if self.found:
            return ""
        held = self._held + text
        places = [place for stop in self._stop if (place := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that begins a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
