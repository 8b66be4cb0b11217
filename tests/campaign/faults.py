"""Every call of a command that changes files fails in turn, as SQLite is tested (www.sqlite.org/testing.html).

The library of faults.c counts the calls of write, fsync, rename, mkdir, open and their kin below a command's folder. A
trial lets one of them fail by ENOSPC (and from then on all that need space), EIO, EACCES or EPERM. The command must say
one line that names a file, or succeed all the same. The output is absent, old or new, and the next run is right.
"""

import errno
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from campaign.commands import COMMANDS, Bench
from campaign.kept import keep
from campaign.server import shim

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EPERM)


def run(seconds: float, folder: Path, seed: int = 0, names: Iterable[str] = COMMANDS) -> dict[str, int]:
    """Let calls fail for this time, after the commands are made ready, or until all have failed by every error."""
    counts = Counter(tried=0, faults=0)
    library = shim()
    if library is None:
        return {**counts, "skipped": 1}
    with Bench(folder, library, names) as bench:
        faults = {name: iter(_faults(bench.usual(name).calls, seed)) for name in bench.names}
        sweep(bench, faults, seconds, "faults", counts)
    return dict(counts)


def _faults(calls: int, seed: int) -> list[dict[str, Any]]:
    """All faults of a command, in an order by chance."""
    faults = [
        {"at": at, "error": error, "full": error == errno.ENOSPC} for at in range(1, calls + 1) for error in ERRORS
    ]
    random.Random(seed).shuffle(faults)
    return faults


def sweep(
    bench: Bench,
    faults: dict[str, Iterator[dict[str, Any]]],
    seconds: float,
    part: str,
    counts: Counter[str],
) -> None:
    """Try faults of each command until the time is up; the command that took the least time so far is next."""
    spent, known = dict.fromkeys(faults, 0.0), set()
    end = time.monotonic() + seconds
    while faults and time.monotonic() < end:
        name = min(faults, key=lambda name: spent[name])
        begin = time.monotonic()
        fault = next(faults[name], None)
        if fault is None:
            del faults[name]
            continue
        trial = bench.attempt(name, **fault)
        spent[name] += time.monotonic() - begin
        counts["tried"] += 1
        counts[trial.outcome] += 1
        if trial.complaint is not None:
            counts["faults"] += 1
            kind = (name, trial.complaint.partition(":")[0])
            if kind in known:  # one of a kind is kept
                continue
            known.add(kind)
            said = trial.ended
            evidence = {"code": said.code, "stderr": said.stderr, "failed": said.failed[:3]}
            keep(bench.folder, part, command=name, wrong=trial.complaint, fault=fault, **evidence)
