"""What an engine runs: a picklable call for each part, and the engine that runs here, one part after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.extraction.encodings import Values
from sae_runtime.extraction.part_files import DOCUMENTS, TOKENS, is_whole, write_part
from sae_runtime.extraction.part_rows import Pool, Source, pooled
from sae_runtime.extraction.plan import Part, Plan

Task = Callable[[int], None]
"""Makes one part, by its number. It pickles, and may be called again."""

Engine = Callable[[Task, Sequence[int]], Iterable[int]]
"""Runs a task for numbers of parts, and gives each as it is done, in any order."""


def local(task: Task, numbers: Sequence[int]) -> Iterator[int]:
    """Run a task here, one part after the other.

    >>> list(local(lambda number: print(f"part {number}"), [0, 2]))
    part 0
    part 2
    [0, 2]
    """
    for number in numbers:
        task(number)
        yield number


@dataclass(frozen=True)
class MakeParts:
    """Makes a part's files unless they are whole.

    Attributes:
        source: what is read.
        plan: of the source.
        out: the folder of features.
    """

    source: Source
    plan: Plan
    out: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return MakeParts, (self.source, self.plan, self.out.absolute())

    def __call__(self, number: int) -> None:
        """Make one part."""
        if not self.is_done(number):
            self.write(number, self.source.rows(self.part(number)))

    def part(self, number: int) -> Part:
        """A part of the plan."""
        return self.plan.parts[number]

    def is_done(self, number: int) -> bool:
        """Whether a part's files are whole."""
        return is_whole(self.out, number, self.plan.sha256, folders(self.plan))

    def write(self, number: int, rows: Any) -> None:
        """Write a part's rows."""
        per: str = self.plan.facts["per"]
        pool: Pool | None = self.plan.facts["pool"]
        values: Values = self.plan.facts["values"]
        features = pooled(rows, pool) if per == "document" and pool is not None else None
        kinds = self.plan.facts["columns"]
        write_part(self.out, number, rows, plan=self.plan.sha256, values=values, kinds=kinds, pooled=features)


def folders(plan: Plan) -> list[str]:
    """The folders in which a plan's parts have a file."""
    has = {TOKENS: plan.facts["per"] == "token", DOCUMENTS: plan.facts["documents"] is not None}
    return [name for name, there in has.items() if there]
