"""Progress of long work on stderr: a bar on a terminal, and elsewhere a line now and then."""

import re
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

_SECONDS = 30.0  # between two lines
_A_PIECE = re.compile(r"s/ (\w+)s\b")  # tqdm's rate of slow work: "83.3s/ parts" becomes "83.3 s/part"


class _Lines(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar that prints lines of its own instead of one line again and again, and none before the first 30 s."""

    monitor_interval = 0  # no thread that refreshes it

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What tqdm calls with the text to show."""
        return lambda text: file.write(_A_PIECE.sub(r" s/\1", text) + "\n")

    def close(self) -> None:
        """End without a last line: the command says what it made."""
        self.last_print_t = self.start_t - 1  # as if it had not been shown, so that tqdm ends in silence
        super().close()


def progress_bar(total: int | None, unit: str, *, shown: bool, initial: int = 0, seconds: float = _SECONDS) -> Any:
    """A tqdm bar for a `with` block, which counts by its `update(n)`.

    Where stderr is no terminal, it prints a line every 30 seconds: what is done of the total, the rate, and the time
    that is left.

    Args:
        total: the amount of work; None where that is not known.
        unit: what is counted, in the plural.
        shown: show progress at all.
        initial: the work that an earlier run has done.
        seconds: the time between two lines.

    >>> with progress_bar(200, "tokens", shown=True) as bar:
    ...     _ = bar.update(150)
    >>> bar.n
    150
    """
    settings: dict[str, Any] = {"total": total, "initial": initial, "unit": f" {unit}", "disable": not shown}
    settings["unit_scale"] = total is None or total >= 1000  # 12.3k tokens, but 1 of 2 parts
    if not shown or sys.stderr.isatty():
        return tqdm(**settings)
    of_total = "" if total is None else " of {total_fmt}"
    left = "" if total is None else ", {remaining} left"
    line = f"{{desc}}{{n_fmt}}{of_total}{{unit}}, {{rate_fmt}}{left}{{postfix}}"
    return _Lines(**settings, bar_format=line, mininterval=seconds, miniters=1, delay=seconds)
