"""The files that the batch rule over parts needs until the features are whole, in a folder of features.

    candidates/part-00000.npz    the first pass over a part: its candidates, and what each token may lack
    candidates/cut.npz           what the first cut of all candidates keeps, and the parts that need a second pass
    candidates/again-00000.npz   the candidates of such a part after its second pass
    candidates/cut-again.npz     what the last cut keeps; only where there was a second pass

A file appears whole or not at all, and names the plan. Its checksums are compared whenever it is read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.npz_files import npz_members
from sae_runtime.core.features import Features
from sae_runtime.engine.cut_by_parts import Cut, Kept
from sae_runtime.extraction.plan import Plan
from sae_runtime.extraction.two_passes import FirstPass

FOLDER = "candidates"
CUT, CUT_AGAIN = "cut.npz", "cut-again.npz"
FIRST, AGAIN = "part-{:05d}.npz", "again-{:05d}.npz"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Decided:
    """What a cut decided.

    Attributes:
        cut: what it keeps.
        begins: number of the first token of each part, int64 [parts].
        tokens: of all parts.
        again: numbers of the parts that need a second pass.
    """

    cut: Cut
    begins: NDArray[np.int64]
    tokens: int
    again: tuple[int, ...] = ()

    def matches(self, number: int, candidates: Features) -> Features:
        """What the cut keeps of a part's candidates."""
        return self.cut.matches(int(self.begins[number]), candidates)


@dataclass(frozen=True)
class CandidateFiles:
    """The folder of the candidates.

    Attributes:
        folder: the folder.
        plan: of the extraction.
    """

    folder: Path
    plan: Plan

    def is_whole(self, name: str) -> bool:
        """Whether a file is there, of this plan, and as it was written."""
        try:
            self._read(name)
        except (OSError, ValueError):
            return False
        return True

    def write_first(self, number: int, found: FirstPass) -> None:
        """Write the first pass over a part."""
        self._write(FIRST.format(number), {**_arrays(found.candidates), "lacking": found.lacking})

    def first(self, number: int) -> FirstPass:
        """The first pass over a part; errors as `again`."""
        arrays = self._read(FIRST.format(number))
        return FirstPass(self._features(arrays), arrays["lacking"])

    def write_again(self, number: int, candidates: Features) -> None:
        """Write the candidates of a part after its second pass."""
        self._write(AGAIN.format(number), _arrays(candidates))

    def again(self, number: int) -> Features:
        """The candidates of a part after its second pass.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is damaged, or another plan's.
        """
        return self._features(self._read(AGAIN.format(number)))

    def write_cut(self, name: str, decided: Decided) -> None:
        """Write what a cut decided."""
        columns, common = decided.cut.columns, decided.cut.common
        arrays: Arrays = {"bound": common.bound, "last": common.last, "begins": decided.begins}
        arrays |= {"tokens": np.array(decided.tokens), "again": np.array(decided.again, np.int64)}
        if columns is not None:
            arrays |= {"limit_bound": columns.bound, "limit_last": columns.last}
        self._write(name, arrays)

    def cut(self, name: str) -> Decided:
        """What a cut decided; errors as `again`."""
        arrays = self._read(name)
        columns = Kept(arrays["limit_bound"], arrays["limit_last"]) if "limit_bound" in arrays else None
        cut = Cut(columns, Kept(arrays["bound"], arrays["last"]))
        return Decided(cut, arrays["begins"], int(arrays["tokens"]), tuple(arrays["again"].tolist()))

    def _write(self, name: str, arrays: Arrays) -> None:
        with new_file(self.folder / name, force=True) as partial:
            np.savez(partial, plan=self._plan, **arrays)  # type: ignore[arg-type]  # one of its keywords is a bool

    def _read(self, name: str) -> Arrays:
        path = self.folder / name
        try:
            arrays = {key: member.read() for key, member in npz_members(path).items()}
        except (BadZipFile, EOFError, KeyError, NotImplementedError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it and extract again") from error
        if "plan" not in arrays or not np.array_equal(arrays.pop("plan"), self._plan):
            raise ValueError(f"{path} is of another extraction; remove it and extract again")
        return arrays

    def _features(self, arrays: Arrays) -> Features:
        indptr = arrays["indptr"]
        return Features(indptr, arrays["indices"], arrays["values"], self.plan.facts["d_sae"], (len(indptr) - 1,))

    @property
    def _plan(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.plan.sha256.encode(), np.uint8)


def _arrays(features: Features) -> Arrays:
    return {"indptr": features.indptr, "indices": features.indices, "values": features.values}
