"""The folder of a harvest while it is filled.

It holds `harvest.json`, with the facts that decide the rows, and the finished shards; `activations.json` comes last.
When the same harvest runs again it continues after the last finished shard, and gives the same bytes.
"""

import json
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sae_runtime.activations import INDEX
from sae_runtime.files import check_free, new_file, repair
from sae_runtime.tensors import read_header

PLAN = "harvest.json"
_SHARD = re.compile(r"shard-\d{5,}\.safetensors")
_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial\.\w+")


def check_folder(out: Path, plan: dict[str, Any], *, force: bool) -> None:
    """Raise unless a harvest may write to a folder; nothing is changed.

    Args:
        out: the folder to make or to finish.
        plan: the facts that decide the rows, as JSON.
        force: whether an earlier harvest may be replaced.

    Raises:
        FileExistsError: `out` is finished and `force` is not set, or it holds files that harvest did not write.
        NotADirectoryError: the parent of `out` is a file.
        PermissionError: the parent of `out` may not be written to.
        ValueError: `out` was begun with another plan.
    """
    if not out.exists():
        check_free(out)  # raises before the model is loaded where the folder cannot be made
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    names = sorted(path.name for path in out.iterdir())
    shards = [name for name in names if _SHARD.fullmatch(name)]
    foreign = [name for name in names if not (name in (INDEX, PLAN, *shards) or _PARTIAL.fullmatch(name))]
    if foreign and (force or PLAN not in names):
        raise FileExistsError(f"{out} holds {foreign[0]}, which harvest did not write; name another folder")
    if INDEX in names:
        check_free(out, force=force)
    if not shards or force:
        return
    try:
        begun = json.loads((out / PLAN).read_text())
        differing = [(name, begun.get(name), value) for name, value in plan.items() if begun.get(name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{out} holds shards but no readable {PLAN}; use another folder or --force") from error
    if differing:
        name, old, new = differing[0]
        if isinstance(old, list) and isinstance(new, list):  # lists of files: show the first file that differs
            old, new = next(pair for pair in zip_longest(old, new) if pair[0] != pair[1])
        raise ValueError(f"{out} was begun with {name} {old!r}, now it is {new!r}; use another folder or --force")


def start_folder(out: Path, plan: dict[str, Any], *, force: bool) -> None:
    """Make the folder, or clear it of an earlier harvest, and write the plan into it."""
    out.mkdir(parents=True, exist_ok=True)
    # The index is deleted first, because a folder without it counts as unfinished. The plan is deleted last, because
    # it says which harvest the shards belong to.
    for path in sorted(out.iterdir(), key=lambda path: (path.name != INDEX, path.name == PLAN)):
        if partial := _PARTIAL.fullmatch(path.name):
            repair(out / partial["name"])
        elif force:
            path.unlink()
    write_json(out / PLAN, plan)


def is_whole(path: Path, rows: int, dtype: str) -> bool:
    """Whether this file is a finished shard with so many rows of a type, which is named as in safetensors."""
    try:
        specs = read_header(path)
    except (FileNotFoundError, ValueError):
        return False
    expected = {"activations": (dtype, rows)} | {name: ("I32", rows) for name in ("tokens", "documents", "positions")}
    return {name: (spec.dtype, spec.shape[0]) for name, spec in specs.items()} == expected


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all; a file of that name is replaced."""
    with new_file(path, force=True) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")
