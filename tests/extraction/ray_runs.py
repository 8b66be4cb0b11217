"""Extractions under Ray, which test_ray_engine.py runs: `python ray_runs.py CASE MODEL TEXT OUT NOTES [RULE]`."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae_runtime import load_model
from sae_runtime.extraction.extract import Rule, extract
from sae_runtime.extraction.ray_engine import ray_engine
from sae_runtime.extraction.tasks import Task, local
from sae_runtime.extraction.text_source import TextSource


@dataclasses.dataclass
class Noted:
    """A task that notes who makes a part, and dies in the middle of one if it should."""

    task: Task
    notes: Path
    dies: int | None

    def __call__(self, number: int) -> None:
        """Make a part."""
        (self.notes / f"{number}-{os.getpid()}").touch()
        time.sleep(0.2)  # so that one actor cannot make all parts before the other has begun
        if number == self.dies and not (self.notes / "died").exists():
            (self.notes / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.task(number)


def main(case: str, model: Path, text: Path, out: Path, notes: Path, rule: Rule) -> None:
    """Extract."""
    source = TextSource(load_model(model, threads=1), [text], part=600)
    run = local if case == "local" else ray_engine(workers=2)

    def noting(task: Task, numbers: Sequence[int]) -> Iterator[int]:
        yield from run(Noted(task, notes, 3 if case == "dies" else None), numbers)

    extract(source, out, rule=rule, engine=local if case == "local" else noting)


if __name__ == "__main__":
    named = [Path(word) for word in sys.argv[2:6]]
    main(sys.argv[1], named[0], named[1], named[2], named[3], "batch" if sys.argv[6:] == ["batch"] else "served")
