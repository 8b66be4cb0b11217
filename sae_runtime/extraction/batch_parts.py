"""The batch rule over the parts of an extraction: candidates of each part, a cut of all, a second pass, a last cut.

An engine makes the parts of both passes, and the caller cuts. What an interrupted run left is not made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_runtime.core.features import Features
from sae_runtime.core.progress import progress_bar
from sae_runtime.engine.batch_rule import rows_again
from sae_runtime.engine.cut_by_parts import Cut, Parts, cut_by_parts
from sae_runtime.extraction.candidate_files import AGAIN, CUT, CUT_AGAIN, FIRST, CandidateFiles, Decided
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan
from sae_runtime.extraction.tasks import Engine
from sae_runtime.extraction.two_passes import FirstPass, Passes


@dataclass(frozen=True)
class MakeFirst:
    """Makes the first pass over a part, unless its file is whole."""

    passes: Passes
    files: CandidateFiles

    def __call__(self, number: int) -> None:
        """Make one part."""
        if not self.is_done(number):
            self.files.write_first(number, self.passes.first(self.files.plan.parts[number]))

    def is_done(self, number: int) -> bool:
        """Whether a part's file is whole."""
        return self.files.is_whole(FIRST.format(number))


@dataclass(frozen=True)
class MakeAgain:
    """Makes the second pass over a part, unless its file is whole."""

    passes: Passes
    files: CandidateFiles

    def __call__(self, number: int) -> None:
        """Make one part."""
        if not self.is_done(number):
            decided, first = self.files.cut(CUT), self.files.first(number)
            found = FirstPass(decided.matches(number, first.candidates), first.lacking)
            part = self.files.plan.parts[number]
            self.files.write_again(number, self.passes.second(part, found, decided.cut.bound))

    def is_done(self, number: int) -> bool:
        """Whether a part's file is whole."""
        return self.files.is_whole(AGAIN.format(number))


@dataclass(frozen=True)
class Matched:
    """A source whose parts have the matches of the batch rule."""

    passes: Passes
    files: CandidateFiles

    def plan(self) -> Plan:
        """As Source."""
        return self.files.plan

    def rows(self, part: Part) -> PartRows:
        """As Source."""
        decided = self.files.cut(CUT)
        matches = _after_first_cut(self.files, decided, part.number)
        if decided.again:
            matches = self.files.cut(CUT_AGAIN).matches(part.number, matches)
        return self.passes.rows(part, matches)

    def vocabulary(self) -> None:
        """As Source."""


def match(passes: Passes, files: CandidateFiles, *, engine: Engine, progress: bool) -> Matched:
    """Find the matches of all parts.

    Args:
        passes: over the source.
        files: the candidates, of which some may be there.
        engine: runs the parts.
        progress: show the progress on stderr.
    """
    numbers = range(len(files.plan.parts))
    _run(engine, MakeFirst(passes, files), numbers, "parts, first pass", progress)
    if not files.is_whole(CUT):
        begins = np.cumsum([0, *(len(files.first(number).lacking) for number in numbers)])
        tokens = int(begins[-1])
        cut = _cut(passes, files, tokens, lambda: (files.first(number).candidates for number in numbers))
        again = tuple(number for number in numbers if len(rows_again(files.first(number).lacking, cut.bound)))
        files.write_cut(CUT, Decided(cut, begins[:-1], tokens, again))
    decided = files.cut(CUT)
    _run(engine, MakeAgain(passes, files), decided.again, "parts, second pass", progress)
    if decided.again and not files.is_whole(CUT_AGAIN):
        cut = _cut(passes, files, decided.tokens, lambda: (_after_first_cut(files, decided, n) for n in numbers))
        files.write_cut(CUT_AGAIN, Decided(cut, decided.begins, decided.tokens))
    return Matched(passes, files)


def _run(engine: Engine, task: MakeFirst | MakeAgain, numbers: Sequence[int], unit: str, progress: bool) -> None:
    left = [number for number in numbers if not task.is_done(number)]
    with progress_bar(len(numbers), unit, shown=progress and bool(left), initial=len(numbers) - len(left)) as bar:
        for _ in engine(task, left):
            bar.update()


def _cut(passes: Passes, files: CandidateFiles, tokens: int, parts: Parts) -> Cut:
    total, limit = passes.limits(tokens)
    return cut_by_parts(parts, files.plan.facts["d_sae"], total=total, limit=limit)


def _after_first_cut(files: CandidateFiles, decided: Decided, number: int) -> Features:
    """The candidates of a part for the last cut: after its second pass, or what the first cut keeps."""
    if number in decided.again:
        return files.again(number)
    return decided.matches(number, files.first(number).candidates)
