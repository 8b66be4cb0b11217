"""The batch rule over the parts of an extraction, out of core.

    candidates/part-00000.npz    the first pass over a part: its candidates, and what each token may lack
    candidates/cut.npz           what the first cut of all candidates keeps, and the parts that need a second pass
    candidates/again-00000.npz   the candidates of such a part after its second pass
    candidates/cut-again.npz     what the last cut keeps; only where there was a second pass

An engine makes the files of parts, and the caller both cuts. Each file appears whole, and one that is there is not made
again. The files name the plan, and their checksums are compared whenever they are read. The folder goes when the
features are whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.npz_files import npz_members
from sae_runtime.core.features import Features
from sae_runtime.core.progress import progress_bar
from sae_runtime.engine.batch_rule import rows_again
from sae_runtime.engine.cut_by_parts import Cut, Kept, cut_by_parts
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan
from sae_runtime.extraction.tasks import Engine, Task
from sae_runtime.extraction.two_passes import FirstPass, Passes

FOLDER = "candidates"
_CUT, _CUT_AGAIN = "cut.npz", "cut-again.npz"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Candidates:
    """The folder of candidates of an extraction.

    Attributes:
        folder: of the files.
        plan: of the extraction.
        d_sae: number of features.
    """

    folder: Path
    plan: Plan
    d_sae: int

    def write(self, name: str, arrays: Arrays) -> None:
        """Write a file, whole or not at all."""
        with new_file(self.folder / name, force=True) as partial:
            np.savez(partial, plan=self._plan, **arrays)

    def read(self, name: str) -> Arrays:
        """The arrays of a file.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is damaged, or another plan's.
        """
        path = self.folder / name
        try:
            arrays = {key: member.read() for key, member in npz_members(path).items()}
        except (BadZipFile, EOFError, KeyError, NotImplementedError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and extract again") from error
        if not np.array_equal(arrays.pop("plan", None), self._plan):
            raise ValueError(f"{path} is of another extraction; remove it and extract again")
        return arrays

    def is_whole(self, name: str) -> bool:
        """Whether a file is there, of this plan, and as it was written."""
        try:
            self.read(name)
        except (OSError, ValueError):
            return False
        return True

    def write_features(self, name: str, features: Features, **arrays: NDArray[Any]) -> None:
        """Write features of shape (n,), with other arrays."""
        own = {"indptr": features.indptr, "indices": features.indices, "values": features.values}
        self.write(name, own | arrays)

    def features(self, arrays: Arrays) -> Features:
        """The features of a file."""
        indptr = arrays["indptr"]
        return Features(indptr, arrays["indices"], arrays["values"], self.d_sae, (len(indptr) - 1,))

    def first(self, number: int) -> FirstPass:
        """The first pass over a part."""
        arrays = self.read(first_name(number))
        return FirstPass(self.features(arrays), arrays["lacking"])

    @property
    def _plan(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.plan.sha256.encode(), np.uint8)


def first_name(number: int) -> str:
    """The file of a part's first pass."""
    return f"part-{number:05d}.npz"


def again_name(number: int) -> str:
    """The file of a part's second pass."""
    return f"again-{number:05d}.npz"


@dataclass(frozen=True)
class Decided:
    """What a cut decided.

    Attributes:
        cut: what it keeps.
        begins: number of the first token of each part, int64 [parts].
        again: numbers of the parts that need a second pass.
    """

    cut: Cut
    begins: NDArray[np.int64]
    again: NDArray[np.int64]

    def arrays(self) -> Arrays:
        """As a file holds it."""
        columns = self.cut.columns
        limits = {} if columns is None else {"limit_bound": columns.bound, "limit_last": columns.last}
        common = {"bound": self.cut.common.bound, "last": self.cut.common.last}
        return limits | common | {"begins": self.begins, "again": self.again}


def decided(arrays: Arrays) -> Decided:
    """What a file holds."""
    columns = Kept(arrays["limit_bound"], arrays["limit_last"]) if "limit_bound" in arrays else None
    return Decided(Cut(columns, Kept(arrays["bound"], arrays["last"])), arrays["begins"], arrays["again"])


@dataclass(frozen=True)
class MakeFirst:
    """Makes the first pass over a part, unless its file is whole."""

    passes: Passes
    candidates: Candidates

    def __call__(self, number: int) -> None:
        """Make one part."""
        name = first_name(number)
        if not self.candidates.is_whole(name):
            found = self.passes.first(self.candidates.plan.parts[number])
            self.candidates.write_features(name, found.candidates, lacking=found.lacking)


@dataclass(frozen=True)
class MakeAgain:
    """Makes the second pass over a part, unless its file is whole."""

    passes: Passes
    candidates: Candidates

    def __call__(self, number: int) -> None:
        """Make one part."""
        name = again_name(number)
        if not self.candidates.is_whole(name):
            first, found = decided(self.candidates.read(_CUT)), self.candidates.first(number)
            matches = first.cut.matches(int(first.begins[number]), found.candidates)
            part = self.candidates.plan.parts[number]
            features = self.passes.second(part, FirstPass(matches, found.lacking), first.cut.bound)
            self.candidates.write_features(name, features)


@dataclass(frozen=True)
class Matched:
    """Gives the rows of a part with the matches of the batch rule."""

    passes: Passes
    candidates: Candidates

    def plan(self) -> Plan:
        """As Source."""
        return self.candidates.plan

    def vocabulary(self) -> None:
        """As Source."""

    def rows(self, part: Part) -> PartRows:
        """As Source."""
        first = decided(self.candidates.read(_CUT))
        features = _after_first(self.candidates, first, part.number)
        if len(first.again):
            last = decided(self.candidates.read(_CUT_AGAIN))
            features = last.cut.matches(int(first.begins[part.number]), features)
        return self.passes.rows(part, features)


def match(passes: Passes, candidates: Candidates, *, engine: Engine, progress: bool) -> Matched:
    """Find the matches of all parts; what an earlier run found is not made again.

    Args:
        passes: over the source.
        candidates: the folder, which may be there.
        engine: runs the parts.
        progress: show the progress on stderr.
    """
    numbers = range(len(candidates.plan.parts))
    _run(
        engine, MakeFirst(passes, candidates), [n for n in numbers if not candidates.is_whole(first_name(n))], progress
    )
    if not candidates.is_whole(_CUT):
        counts = [len(candidates.first(number).lacking) for number in numbers]
        total, limit = passes.limits(sum(counts))

        def found() -> Iterator[Features]:
            return (candidates.first(number).candidates for number in numbers)

        cut = cut_by_parts(found, candidates.d_sae, total=total, limit=limit)
        again = [number for number in numbers if len(rows_again(candidates.first(number).lacking, cut.bound))]
        begins = np.cumsum([0, *counts])[:-1]
        candidates.write(_CUT, Decided(cut, begins, np.array(again, np.int64)).arrays())
    first = decided(candidates.read(_CUT))
    left = [number for number in first.again.tolist() if not candidates.is_whole(again_name(number))]
    _run(engine, MakeAgain(passes, candidates), left, progress)
    if len(first.again) and not candidates.is_whole(_CUT_AGAIN):
        tokens = sum(len(candidates.first(number).lacking) for number in numbers)
        total, limit = passes.limits(tokens)

        def found_again() -> Iterator[Features]:
            return (_after_first(candidates, first, number) for number in numbers)

        cut = cut_by_parts(found_again, candidates.d_sae, total=total, limit=limit)
        candidates.write(_CUT_AGAIN, Decided(cut, first.begins, np.zeros(0, np.int64)).arrays())
    return Matched(passes, candidates)


def _run(engine: Engine, task: Task, numbers: Sequence[int], progress: bool) -> None:
    with progress_bar(len(numbers), "parts", shown=progress and len(numbers) > 0) as bar:
        for _ in engine(task, numbers):
            bar.update()


def _after_first(candidates: Candidates, first: Decided, number: int) -> Features:
    """The candidates of a part for the last cut: after its second pass, or what the first cut keeps."""
    if number in first.again:
        return candidates.features(candidates.read(again_name(number)))
    return first.cut.matches(int(first.begins[number]), candidates.first(number).candidates)
