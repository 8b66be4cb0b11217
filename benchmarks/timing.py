"""Times of several runs, taken in turn, on a machine that may be a part of a larger one."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

Task = Callable[[], object]

_LONG = 0.5  # s; a call that takes longer is a turn of its own
_STOLEN = 0.01  # of a turn's processor time; when the host took more, the turn does not count
_STAT = Path("/proc/stat")


def median_seconds(runs: dict[str, Callable[[], object]], rounds: int, *, turn: float = 0.05) -> dict[str, float]:
    """Median time of one call of each run.

    A turn calls one run again and again for `turn` seconds after a call that does not count: what is served finds its
    weights where its last call left them, and no thread still spins for the run before. A turn from which the host
    took processor time (steal in /proc/stat) is taken again, as long as no more than half of all are; stderr says how
    many turns count that were disturbed.

    Args:
        runs: what to time, by name; taken in turn.
        rounds: turns of each.
        turn: seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    spare, disturbed = rounds * len(runs), 0
    for _ in range(rounds):
        for name, run in runs.items():
            while True:
                time_of_call, quiet = _turn(run, turn)
                if quiet or spare == 0:
                    break
                spare -= 1
            disturbed += not quiet
            seconds[name].append(time_of_call)
    if disturbed:
        print(f"{disturbed} of {rounds * len(runs)} turns lost time to other machines on the host", file=sys.stderr)
    return {name: statistics.median(times) for name, times in seconds.items()}


def neighbour_ratios(
    base: Callable[[], object], runs: dict[str, Callable[[], object]], seconds: float = 20.0
) -> dict[str, float]:
    """Median of the ratio of one call of each run to the calls of `base` right before and after it.

    For differences of a few per cent: what slows the machine for longer than a call slows both.

    Args:
        base: what to compare with.
        runs: what to time, by name.
        seconds: to spend on all of them together; at least nine rounds.
    """
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    begin, last = time.perf_counter(), _seconds(base)
    while time.perf_counter() - begin < seconds or len(ratios[next(iter(runs))]) < 9:
        for name, run in runs.items():
            taken, before, last = _seconds(run), last, _seconds(base)
            ratios[name].append(2 * taken / (before + last))
    return {name: statistics.median(own) for name, own in ratios.items()}


def processor_seconds(task: Task, least: float) -> float:
    """Mean of calls that take at least so long together, after one that does not count unless it takes longer."""
    begin = time.process_time()
    task()
    taken, calls = time.process_time() - begin, 1
    if taken < least:
        begin, taken, calls = time.process_time(), 0.0, 0
        while taken < least:
            task()
            taken, calls = time.process_time() - begin, calls + 1
    return taken / calls


def answer_lines(tasks: dict[str, Task], answers: TextIO) -> None:
    """Answer the lines of stdin by lines of JSON.

    Args:
        tasks: what is timed, by name.
        answers: gets the names for the line `tasks`, and for `SECONDS TASK` the processor seconds of a call.
    """
    for line in sys.stdin:
        least, _, name = line.strip().partition(" ")
        answer = list(tasks) if least == "tasks" else processor_seconds(tasks[name], float(least))
        print(json.dumps(answer), file=answers, flush=True)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _turn(run: Callable[[], object], least: float) -> tuple[float, bool]:
    """Seconds of a call, and whether the host left this machine its processors meanwhile."""
    stolen, begin = _stolen(), time.perf_counter()
    run()
    taken, calls = time.perf_counter() - begin, 1
    if taken < _LONG:
        stolen, begin, taken, calls = _stolen(), time.perf_counter(), 0.0, 0
        while taken < least:
            run()
            taken, calls = time.perf_counter() - begin, calls + 1
    return taken / calls, _stolen() - stolen <= _STOLEN * taken * (os.cpu_count() or 1)


def _stolen() -> float:
    """Processor seconds that the host has given to others since it started; 0 where the system does not tell."""
    if not _STAT.exists():
        return 0.0
    return int(_STAT.read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")
