"""kill -9 and Ctrl-C, at each call that changes files and at moments by chance, for every command that writes.

The judgement is that of faults.py. Ctrl-C also ends with exit code 130 and one line, or comes too late to matter.
"""

import random
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from campaign.commands import COMMANDS
from campaign.faults import sweep
from campaign.server import Ended


def run(seconds: float, folder: Path, seed: int = 0, names: Iterable[str] = COMMANDS) -> dict[str, int]:
    """Kill and interrupt for this time, after the commands are made ready."""
    return sweep(lambda usual: _moments(usual, seed), seconds, folder, names)


def _moments(usual: Ended, seed: int) -> Iterator[dict[str, Any]]:
    """Each call and each signal once, in an order by chance, and between them as many moments of the usual time."""
    rng = random.Random(seed)
    signals = (int(signal.SIGKILL), int(signal.SIGINT))
    calls = [(at, one) for at in range(1, usual.calls + 1) for one in signals]
    rng.shuffle(calls)
    while True:
        if calls:
            at, one = calls.pop()
            yield {"at": at, "signal": one}
        yield {"after": rng.uniform(0, usual.seconds), "signal": rng.choice(signals)}
