"""Every call of a command that changes files fails in turn, as SQLite is tested (www.sqlite.org/testing.html).

The library of faults.c counts the calls of write, fsync, rename, mkdir, open and their kin below a command's folder. A
trial lets one of them fail by ENOSPC (and from then on all that need space), EIO, EACCES or EPERM. The command must say
one line that names a file, or succeed all the same. The output is absent, old or new, and the next run is right.
"""

import errno
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from campaign.commands import COMMANDS, Bench, Trial, benches
from campaign.kept import keep
from campaign.server import Ended, shim

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EPERM)
Faults = Callable[[Ended], Iterator[dict[str, Any]]]
"""The faults of a command, by how it ends without one."""


def run(seconds: float, folder: Path, seed: int = 0, names: Iterable[str] = COMMANDS) -> dict[str, int]:
    """Let calls fail for this time, after the commands are made ready, or until all have failed by every error."""
    if shim() is None:
        return {"tried": 0, "faults": 0, "skipped": 1}
    return sweep(lambda usual: _faults(usual.calls, seed), seconds, folder, names)


def _faults(calls: int, seed: int) -> Iterator[dict[str, Any]]:
    """All faults of a command, in an order by chance."""
    faults = [
        {"at": at, "error": error, "full": error == errno.ENOSPC} for at in range(1, calls + 1) for error in ERRORS
    ]
    random.Random(seed).shuffle(faults)
    yield from faults


def sweep(
    faults: Faults,
    seconds: float,
    folder: Path,
    names: Iterable[str],
    attempt: Callable[..., Trial] = Bench.attempt,
) -> dict[str, int]:
    """Try faults until the time is up; the command of a bench that took the least time so far is next."""
    ready = benches(folder.parent, tuple(names))
    counts, known, lock = Counter(tried=0, faults=0), set[tuple[str, str]](), threading.Lock()
    end = time.monotonic() + seconds

    def work(bench: Bench) -> None:
        left = {name: faults(bench.usual(name)) for name in bench.names}
        spent = dict.fromkeys(left, 0.0)
        while left and (begin := time.monotonic()) < end:
            name = min(left, key=lambda name: spent[name])
            fault = next(left[name], None)
            if fault is None:
                del left[name]
                continue
            trial = attempt(bench, name, **fault)
            spent[name] += time.monotonic() - begin
            with lock:
                counts.update(["tried", trial.outcome])
                if trial.complaint is not None:
                    counts["faults"] += 1
                    kind = (name, trial.complaint.partition(":")[0])
                    if kind not in known:  # one of a kind is kept
                        known.add(kind)
                        _keep(folder, name, fault, trial)

    with ThreadPoolExecutor(len(ready)) as pool:
        list(pool.map(work, ready))
    return dict(counts)


def _keep(folder: Path, name: str, fault: Mapping[str, Any], trial: Trial) -> None:
    said = trial.ended
    evidence = {"code": said.code, "stderr": said.stderr, "failed": said.failed[:3]}
    keep(folder, folder.name, command=name, wrong=trial.complaint, fault=fault, **evidence)
