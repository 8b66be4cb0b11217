"""An extraction whose parts are shared out among processes that know nothing of each other, such as jobs of Slurm.

One process plans, each of N makes its share of the parts, and a last plain `extract` makes what is missing and writes
the index. A share may be made twice, and its process may be killed: a part has the same bytes whoever makes it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction.batch_parts import MakeFirst
from sae_runtime.extraction.candidate_files import FOLDER, CandidateFiles
from sae_runtime.extraction.extract import begun, check_out, planned, prepare
from sae_runtime.extraction.part_rows import Source
from sae_runtime.extraction.plan import PLAN, Plan, difference, read_plan
from sae_runtime.extraction.tasks import Engine, MakeParts, local
from sae_runtime.extraction.two_passes import passes_of


def plan_only(source: Source, out: Path, *, force: bool = False, **settings: Any) -> Plan:
    """Write the plan of an extraction, and make no part.

    Args:
        source: as for `extract`.
        out: the folder.
        force: start over in a folder of another extraction.
        settings: `per`, `pool`, `rule` and `values` of `extract`.

    Raises:
        FileExistsError, ValueError: as `extract`.

    >>> from sae_runtime.extraction.array_source import ArraySource
    >>> plan = plan_only(ArraySource(sae, activations_path), Path("shared"))
    >>> make_share(ArraySource(sae, activations_path), Path("shared"), (1, 2))
    0
    """
    check_out(out)
    plan = planned(source, **settings)
    with begun(out, plan, force=force):
        prepare(source, out)
    return plan


def make_share(
    source: Source,
    out: Path,
    share: tuple[int, int],
    *,
    engine: Engine = local,
    progress: bool = False,
    **settings: Any,
) -> int:
    """Make those parts of a share that are missing, in a folder that has a plan; gives the number of parts made.

    By the batch rule it makes their candidates, among which the last `extract` chooses.

    Args:
        source: as for `extract`.
        out: the folder.
        share: number of the share, from 1, and how many there are.
        engine: runs the parts.
        progress: show the progress on stderr.
        settings: `per`, `pool`, `rule` and `values` of `extract`.

    Raises:
        FileNotFoundError: the folder has no plan.
        ValueError: there is no such share; or the input, the model or a setting is another one than that of the plan.

    """
    number, count = share
    if not 1 <= number <= count:
        raise ValueError(f"a share is 1/{count} to {count}/{count}, got {number}/{count}; give one of these")
    passes = passes_of(source) if settings.get("rule") == "batch" else None
    if not (out / PLAN).is_file():
        raise FileNotFoundError(f"{out} has no plan; write it first, by the same command with --plan-only for --share")
    there = read_plan(out)
    plan = planned(source, **settings)
    if (what := difference(there, plan)) is not None:
        raise ValueError(f"{out} was begun with {what}; use another folder, or plan it anew by --plan-only --force")
    whole = MakeParts(source, plan, out)
    task = whole if passes is None else MakeFirst(passes, CandidateFiles(out / FOLDER, plan))
    own = _own(range(len(plan.parts)), number, count)
    left = [part for part in own if not (whole.is_done(part) or task.is_done(part))]
    with progress_bar(len(left), "parts", shown=progress) as bar:
        for _ in engine(task, left):
            bar.update(1)
    return len(left)


def _own(parts: Sequence[int], number: int, count: int) -> Sequence[int]:
    """The parts of a share stand side by side, since the input is read in its order."""
    return parts[len(parts) * (number - 1) // count : len(parts) * number // count]
