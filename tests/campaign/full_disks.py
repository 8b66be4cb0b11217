"""Commands on a file system that is too small: a tmpfs of each size, from nothing to enough.

It needs the right to mount, so it skips where that is missing; the library of faults.c fills disks there too.
"""

import contextlib
import random
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from campaign.commands import COMMANDS, Bench
from campaign.faults import sweep

PAGE = 4096


def run(seconds: float, folder: Path, seed: int = 0, names: Iterable[str] = COMMANDS) -> dict[str, int]:
    """Run commands on small disks for this time, after they are made ready."""
    counts = Counter(tried=0, faults=0)
    (folder / "may-mount").mkdir(parents=True)
    try:
        with _disk(folder / "may-mount", PAGE * 16):
            pass
    except (OSError, subprocess.CalledProcessError):
        return {**counts, "skipped": 1}
    with SmallDisks(folder, None, names) as bench:
        for name in bench.names:
            bench.usual(name)
        sweep(bench, {name: _rooms(seed) for name in bench.names}, seconds, "full-disks", counts)
    return dict(counts)


class SmallDisks(Bench):
    """A bench whose trials have `room` pages beyond their inputs; there is no second run, since the disk stays full."""

    def attempt(self, name: str, *, room: int = 0, **fault: object) -> Any:  # type: ignore[override]
        """Run a command on a small disk, and look at what it left."""
        used = sum(-(-path.stat().st_size // PAGE) + 1 for path in [*self.ready(name).rglob("*")])
        with _disk(self.place, (used + room) * PAGE):
            return super().attempt(name, again=False, **fault)


def _rooms(seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    while True:
        yield {"room": rng.choice((rng.randrange(1, 12), rng.randrange(1, 60)))}


@contextlib.contextmanager
def _disk(folder: Path, size: int) -> Iterator[None]:
    """A tmpfs of a size in bytes on a folder, until the block ends."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
