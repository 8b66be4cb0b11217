"""The folder of a harvest while it is filled.

It holds `harvest.json`, the plan with the facts that decide the rows, and the finished shards. `documents.jsonl` is
written after all shards, and `activations.json` last. If the harvest is interrupted, the same harvest continues after
the last finished shard, and writes the same bytes.
"""

import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sae_runtime.activations.sources import SOURCES
from sae_runtime.activations.stored import INDEX, PLAN
from sae_runtime.bundle.files import write_json
from sae_runtime.bundle.outputs import Output
from sae_runtime.bundle.siblings import LEFTOVER, repair
from sae_runtime.bundle.tensors import read_header
from sae_runtime.bundle.typed_json import read_file

_SHARD = re.compile(r"shard-\d{5,}\.safetensors")


def check_folder(out: Path, plan: dict[str, Any], *, force: bool) -> None:
    """Check that a harvest may write to a folder, and change nothing.

    Args:
        out: the folder to make or to finish.
        plan: the facts that decide the rows, as JSON.
        force: whether an earlier harvest may be replaced.

    Raises:
        FileExistsError: `out` is finished and `force` is not set, or it holds files that harvest did not write.
        NotADirectoryError: a parent of `out` is a file.
        PermissionError: the folder for `out` may not be written to.
        ValueError: `out` was begun with another plan.

    >>> check_folder(Path("activations"), {"context": 128}, force=False)
    """
    whole, begun_here = (out / INDEX).is_file(), (out / PLAN).is_file()
    if not out.is_dir() or (whole and not force):
        Output(path=out, kind="folder").check()
    elif (force or not begun_here) and (name := _foreign(out)):  # a harvest that continues replaces only shards
        raise FileExistsError(f"{out} holds {name}, which would be lost; name another output")
    if force or not out.is_dir() or not any(_SHARD.fullmatch(path.name) for path in out.iterdir()):
        return
    try:
        begun = read_file(dict[str, Any], out / PLAN)
    except (OSError, ValueError) as error:
        raise ValueError(f"{out} holds shards but no readable {PLAN}; use another folder or --force") from error
    for name, new in plan.items():
        old = begun.get(name)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list):  # lists of files: show the first that differs
            old, new = next(pair for pair in zip_longest(old, new) if pair[0] != pair[1])
        raise ValueError(f"{out} was begun with {name} {old!r}, now it is {new!r}; use another folder or --force")


def is_done(out: Path, plan: dict[str, Any]) -> bool:
    """Whether a folder holds all of the rows of a plan.

    >>> is_done(Path("activations"), {"context": 128})
    False
    """
    if not (out / INDEX).is_file():
        return False
    try:
        done = read_file(dict[str, Any], out / PLAN)
    except (OSError, ValueError):
        return False
    return all(done.get(name) == value for name, value in plan.items())


def _foreign(folder: Path) -> str | None:
    """The name of a file that harvest did not write, or None."""
    for path in sorted(folder.iterdir()):
        left = LEFTOVER.fullmatch(path.name)
        name = path.name if left is None else left["name"]
        if not path.is_file() or not (name in (INDEX, PLAN, SOURCES) or _SHARD.fullmatch(name)):
            return path.name
    return None


def start_folder(out: Path, plan: dict[str, Any], *, force: bool) -> None:
    """Make the folder, or with `force` remove an earlier harvest from it, and write the plan into it.

    >>> start_folder(Path("activations"), {"context": 128}, force=False)
    >>> [path.name for path in Path("activations").iterdir()]
    ['harvest.json']
    """
    out.mkdir(parents=True, exist_ok=True)
    # The index is deleted first, because a folder without it counts as unfinished. The plan is deleted last, because it
    # tells which harvest wrote the shards.
    for path in sorted(out.iterdir(), key=lambda path: (path.name != INDEX, path.name == PLAN)):
        if partial := LEFTOVER.fullmatch(path.name):
            repair(out / partial["name"])
        elif force:
            path.unlink()
    write_json(out / PLAN, plan)


def is_whole(path: Path, rows: int, dtype: str) -> bool:
    """Whether a file is a finished shard of `rows` rows in a type, such as "F32" in safetensors' names.

    >>> is_whole(Path("shard-00000.safetensors"), 64, "F32")
    False
    """
    try:
        specs = read_header(path)
    except (FileNotFoundError, ValueError):
        return False
    expected = {"activations": (dtype, rows)} | {name: ("I32", rows) for name in ("tokens", "documents", "positions")}
    return {name: (spec.dtype, spec.shape[0]) for name, spec in specs.items()} == expected
