"""Commands on a file system that is too small: a tmpfs of each size, from nothing to enough.

It needs the right to mount, so it skips where that is missing; the library of faults.c fills disks there too.
"""

import contextlib
import random
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from campaign.commands import COMMANDS, Bench, Trial
from campaign.faults import sweep

PAGE = 4096


def run(seconds: float, folder: Path, seed: int = 0, names: Iterable[str] = COMMANDS) -> dict[str, int]:
    """Run commands on small disks for this time, after they are made ready."""
    (folder / "may-mount").mkdir(parents=True)
    try:
        with _disk(folder / "may-mount", PAGE * 16):
            pass
    except (OSError, subprocess.CalledProcessError):
        return {"tried": 0, "faults": 0, "skipped": 1}
    return sweep(lambda _: _rooms(seed), seconds, folder, names, _on_small_disk)


def _on_small_disk(bench: Bench, name: str, *, room: int) -> Trial:
    """Run a command on a disk of `room` pages beyond its inputs; there is no second run, since the disk stays full."""
    used = sum(-(-path.stat().st_size // PAGE) + 1 for path in bench.ready(name).rglob("*"))
    with _disk(bench.place, (used + room) * PAGE):
        return bench.attempt(name, again=False)


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
