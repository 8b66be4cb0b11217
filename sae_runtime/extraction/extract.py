"""Write features of texts or of stored activations as a folder of Parquet parts, which resumes."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.files import remove_folder, write_json
from sae_runtime.bundle.outputs import Output, refuse_inputs
from sae_runtime.bundle.parts import record
from sae_runtime.bundle.siblings import LEFTOVER, lock, repair
from sae_runtime.core.progress import progress_bar
from sae_runtime.extraction.batch_parts import match
from sae_runtime.extraction.candidate_files import FOLDER, CandidateFiles
from sae_runtime.extraction.encodings import VALUES, Values
from sae_runtime.extraction.feature_index import INDEX
from sae_runtime.extraction.part_files import (
    DOCUMENTS,
    TOKENS,
    VOCABULARY,
    file_of,
    read_part_of,
    write_vocabulary,
)
from sae_runtime.extraction.part_rows import Pool, Source
from sae_runtime.extraction.plan import FORMAT_VERSION, PLAN, Plan, difference, read_plan
from sae_runtime.extraction.tasks import Engine, MakeParts, folders, local
from sae_runtime.extraction.two_passes import passes_of

Rule = Literal["served", "batch"]
Per = Literal["token", "document"]
_PART = re.compile(r"(part|again)-\d{5,}\.(parquet|npz)|cut(-again)?\.npz")


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What `extract` wrote.

    Attributes:
        tokens, documents: that were read; documents are 0 where they are not known.
        rows: that have features: tokens, or documents.
        matches: of all rows.
        parts: of the folder.
        size: bytes of all its files.
    """

    tokens: int
    documents: int
    rows: int
    matches: int
    parts: int
    size: int


def extract(
    source: Source,
    out: Path,
    *,
    per: Per = "token",
    pool: Pool = "max",
    rule: Rule = "served",
    values: Values = "float24",
    engine: Engine = local,
    force: bool = False,
    progress: bool = False,
) -> Extracted:
    """Write the features of a source to a folder of parts. If an earlier run left it unfinished, this one finishes it.

    Args:
        source: a `TextSource` or an `ArraySource`.
        out: the folder.
        per: a row for each token, or for each document.
        pool: what a document's features are of those of its tokens: "max", "mean" or "sum".
        rule: "served": each token by itself; "batch": the largest activations of all tokens together.
        values: how values are rounded in the files, see `encodings.rounded`.
        engine: runs the parts.
        force: start over in a folder of another extraction.
        progress: show the progress on stderr.

    Raises:
        FileExistsError: `out` holds files that are not of an extraction.
        ImportError: pyarrow is not installed.
        ValueError: `out` was begun with another input, model or setting; another run writes there; the input changed
            meanwhile or cannot be read; or a value is too large for float16.
    """
    check_out(out)
    passes = passes_of(source) if rule == "batch" else None
    plan = planned(source, per=per, pool=pool, rule=rule, values=values)
    with begun(out, plan, force=force):
        prepare(source, out)
        task = MakeParts(source, plan, out)
        left = [part.number for part in plan.parts if not task.is_done(part.number)]
        if passes is not None and left:
            files = CandidateFiles(out / FOLDER, plan)
            task = MakeParts(match(passes, files, engine=engine, progress=progress), plan, out)
        done = len(plan.parts) - len(left)
        with progress_bar(len(plan.parts), "parts", shown=progress, initial=done) as bar:
            for _ in engine(task, left):
                bar.update(1)
        return finish(out, plan)


def planned(
    source: Source, *, per: Per = "token", pool: Pool = "max", rule: Rule = "served", values: Values = "float24"
) -> Plan:
    """The plan of an extraction, with all that decides its rows; it reads all of the input.

    Raises:
        ImportError, ValueError: as `extract`.
    """
    require("extract")
    refuse_rule_and_values(rule, values)
    _refuse_unknown("per", per, ("token", "document"))
    _refuse_unknown("pool", pool, ("max", "mean", "sum"))
    plan = source.plan()
    settings = {"per": per, "pool": pool if per == "document" else None, "rule": rule, "values": values}
    plan = Plan({**plan.facts, **settings}, plan.parts)
    if per == "document" and plan.facts["documents"] is None:
        path = plan.facts["source"]["activations"]
        raise ValueError(f"{path} does not know its documents; harvest the activations from text, or leave out --per")
    return plan


def prepare(source: Source, out: Path) -> None:
    """Write what a folder has beside its parts."""
    if (names := source.vocabulary()) is not None:
        write_vocabulary(out / VOCABULARY, names)


def refuse_rule_and_values(rule: str, values: str) -> None:
    """Raise ValueError if there is no such rule, or no such type of values."""
    _refuse_unknown("rule", rule, ("served", "batch"))
    _refuse_unknown("values", values, VALUES)


def _refuse_unknown(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")


@contextlib.contextmanager
def begun(out: Path, plan: Plan, *, force: bool) -> Iterator[None]:
    """Make the folder with its plan, or find it begun with the same one; no other run may begin it meanwhile."""
    check_out(out)
    is_new, made = not (out / PLAN).is_file(), not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with lock(out) as locked:
        if locked is False:
            raise ValueError(f"another run is writing to {out}; wait for its end, or name another folder")
        if force:
            _clear(out)
        elif _has_parts(out) and (what := difference(read_plan(out), plan)) is not None:
            raise ValueError(f"{out} was begun with {what}; use another folder or --force")
        try:
            plan.write(out)
            _remove_others(out, plan)
            yield
        except BaseException:  # Ctrl-C too
            if is_new and not _has_parts(out):
                _clear(out)
                _remove_empty(out, with_itself=made)
            raise


def finish(out: Path, plan: Plan) -> Extracted:
    """Write the index of a folder whose parts are all made."""
    parts = []
    totals = {"tokens": 0, "documents": 0, "matches": 0}
    for part in plan.parts:
        files = [f"{name}/{file_of(part.number)}" for name in folders(plan)]
        made = read_part_of(out / files[0])
        numbers = {name: getattr(made, name) for name in totals}
        totals = {name: totals[name] + number for name, number in numbers.items()}
        parts.append({**numbers, "files": {name: asdict(record(out / name)) for name in files}})
    facts = {name: value for name, value in plan.facts.items() if name not in ("documents", "columns", "part")}
    index: dict[str, Any] = {"format_version": FORMAT_VERSION, "plan_sha256": plan.sha256, **facts, **totals}
    write_json(out / INDEX, index | {"parts": parts})
    repair(out / FOLDER)
    if (out / FOLDER).is_dir():
        remove_folder(out / FOLDER)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    rows = totals["tokens" if plan.facts["per"] == "token" else "documents"]
    return Extracted(**totals, rows=rows, parts=len(parts), size=size)


def check_out(out: Path, inputs: Mapping[str, Sequence[Path]] | None = None) -> None:
    """Refuse an output that cannot be made, is an input, or holds other things. Callers do this before long work.

    Raises:
        FileExistsError: it holds files that extract did not write, or is a file.
        NotADirectoryError: a parent of it is a file.
        PermissionError: this process may not write there.
        ValueError: it is, holds or is inside an input, or has the name of a Parquet file.

    >>> check_out(Path("features"), {"bundle": [Path("sae")]})
    """
    for called, path in ((called, path) for called, paths in (inputs or {}).items() for path in paths):
        refuse_inputs(out, {called: path})
    if out.suffix == ".parquet":
        raise ValueError(f"{out} ends in .parquet, but features are a folder of Parquet files; name a folder")
    if not out.is_dir():
        Output(path=out, kind="folder").check()
        return
    if not os.access(out, os.W_OK | os.X_OK):
        raise PermissionError(f"you may not write to {out}; name another output")
    if (name := foreign(out)) is not None:
        raise FileExistsError(f"{out} holds {name}, which extract did not write; name another output")


def foreign(out: Path) -> str | None:
    """The name of an entry of a folder that is none of an extraction's, or None."""
    for path in sorted(out.iterdir()):
        left = LEFTOVER.fullmatch(path.name)
        name = path.name if left is None else left["name"]
        if name in (TOKENS, DOCUMENTS, FOLDER) and path.is_dir():
            for inner in sorted(path.iterdir()):
                inside = LEFTOVER.fullmatch(inner.name)
                if not _PART.fullmatch(inner.name if inside is None else inside["name"]):
                    return f"{name}/{inner.name}"
        elif not path.is_file() or name not in (PLAN, INDEX, VOCABULARY):
            return path.name
    return None


def _remove_empty(out: Path, *, with_itself: bool) -> None:
    """Remove the empty folders of a folder, and the folder if nothing is left."""
    for folder in (*(path for path in out.iterdir() if path.is_dir()), *([out] if with_itself else [])):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _has_parts(out: Path) -> bool:
    """Whether an extraction left parts, which only the same plan may go on with."""
    return (out / PLAN).is_file() and any(_PART.fullmatch(path.name) for path in out.glob("*/part-*"))


def _remove_others(out: Path, plan: Plan) -> None:
    """Remove parts that the plan does not have, which were left without theirs, and what killed writers left."""
    own = {out / name / file_of(part.number) for part in plan.parts for name in folders(plan)}
    for path in [path for name in (TOKENS, DOCUMENTS) for path in (out / name).glob("*")]:
        if partial := LEFTOVER.fullmatch(path.name):
            repair(path.with_name(partial["name"]))
        elif path not in own:
            path.unlink()
            with contextlib.suppress(OSError):  # only an empty one goes
                path.parent.rmdir()


def _clear(out: Path) -> None:
    """Remove an earlier extraction: its index first, by which it is whole, its plan last."""
    for path in sorted(out.rglob("*"), key=lambda path: (path.name != INDEX, path.name == PLAN)):
        if partial := LEFTOVER.fullmatch(path.name):
            repair(path.with_name(partial["name"]))
        elif path.is_file():
            path.unlink()
