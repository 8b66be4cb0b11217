"""Files and folders that appear whole or not at all.

A writer fills a hidden sibling (the partial), syncs it to the disk and gives it the name of the path. It holds a lock
on the partial, which the kernel frees when the writer dies. Where something has the name already, the two change places
in one step, and the old content is removed under the name of the partial. Where the system cannot exchange them, an
existing folder is first moved aside (the old one). An existing file is replaced in one step, and the old one is a
second name of it. If a writer died, `repair` or the next writer of the same path cleans up:

| the writer died                                 | left on the disk        | repair                                   |
|-------------------------------------------------|-------------------------|------------------------------------------|
| while it filled or synced                       | partial; the old path   | removes the partial, which has no lock   |
| after the exchange                              | path, partial (the old) | removes the partial                      |
| without exchange, after it moved a folder aside | partial, old; no path   | moves the old back, removes the partial  |
| without exchange, after it renamed the partial  | path, old               | removes the old one                      |
| while it removed the old content                | path, a part of the old | removes it                               |
| in a group, after it moved the last file aside  | not the last file       | removes the partials; the same command   |
|                                                 |                         | makes the group again                    |

A step that fails is undone: the old content has its name again, or the error says where it is. Two writers of one path
do not disturb each other: each has its own partial, and the last one wins.

`force` lets a writer replace what exists: a file another file, and a folder another folder that is empty or of which
the writer says that nothing in it is foreign. A link is replaced itself, and what it leads to stays. Devices, pipes and
sockets are never replaced.
"""

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sae_runtime.bundle.disk_errors import naming
from sae_runtime.bundle.replacing import put_all
from sae_runtime.bundle.siblings import lock, remove, repair, repaired, sibling, sync

_LONGEST_NAME = 255  # bytes, on almost every file system

Kind = Literal["file", "folder"]
Foreign = Callable[[Path], str | None]
"""Gives the name of an entry of an existing folder that must not be lost, or None."""


def anything(folder: Path) -> str | None:
    """The name of an entry of a folder; None if the folder is empty.

    >>> Path("nothing").mkdir()
    >>> anything(Path("nothing"))
    """
    return min((entry.name for entry in folder.iterdir()), default=None)


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool = False, foreign: Foreign = anything) -> Iterator[Path]:
    """Give a folder to fill. It becomes `path` when the block ends, and is removed if the block raises.

    Args:
        path: the folder; its parents are created.
        force: replace an existing folder.
        foreign: what of an existing folder must not be lost.

    Raises:
        FileExistsError: `path` exists and `force` is not set, it is no folder, or it has a foreign entry; checked
            before and after the block.

    >>> with new_folder(Path("results")) as folder:
    ...     _ = (folder / "a.txt").write_text("a")
    >>> [path.name for path in Path("results").iterdir()]
    ['a.txt']
    """
    with _partial(path, Path.mkdir, force=force, kind="folder", foreign=foreign) as partial:
        yield partial
        mode = partial.stat().st_mode
        for file in sorted(partial.rglob("*")):
            if file.is_symlink():  # what it leads to is somebody's
                continue
            if file.is_file():
                file.chmod(mode & 0o666)  # safetensors makes its files private
            sync(file)
        sync(partial)
        _refuse_existing(path, force=force, kind="folder", foreign=foreign)
        put_all({path: partial}, force=force)


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give an empty file to fill. It becomes `path` when the block ends, and is removed if the block raises.

    Its name has the suffix of `path`, for writers that choose the format by the suffix.

    Args:
        path: the file; its parents are created.
        force: replace an existing file.

    Raises:
        FileExistsError: `path` exists and `force` is not set, or it is no file; checked before and after the block.

    >>> with new_file(Path("notes.txt")) as partial:
    ...     _ = partial.write_text("whole")
    >>> Path("notes.txt").read_text()
    'whole'
    """
    with new_files([path], force=force) as (partial,):
        yield partial


@contextlib.contextmanager
def new_files(paths: Sequence[Path], *, force: bool = False, apart: Collection[Path] = ()) -> Iterator[list[Path]]:
    """Give a file to fill for each path, as `new_file` does. All replace their paths together when the block ends.

    The last file reads the others, such as a graph its weights: nobody finds it beside files that are not its own. If
    the writer dies meanwhile, there may be no last file. It does not read those that are `apart`.

    >>> with new_files([Path("weights"), Path("graph")]) as (weights, graph):
    ...     _ = weights.write_text("1"), graph.write_text("2")
    >>> Path("weights").read_text(), Path("graph").read_text()
    ('1', '2')
    """
    with contextlib.ExitStack() as stack:
        partials = {path: stack.enter_context(_partial(path, Path.touch, force=force, kind="file")) for path in paths}
        modes = {partial: partial.stat().st_mode for partial in partials.values()}
        yield list(partials.values())
        for partial, mode in modes.items():
            stack.enter_context(lock(partial))  # again, because safetensors replaces the partial by a private file
            partial.chmod(mode)
            sync(partial)
        for path in paths:
            _refuse_existing(path, force=force, kind="file")
        put_all(partials, force=force, apart=apart)


@contextlib.contextmanager
def new_files_in(
    folder: Path, names: Sequence[str], *, force: bool = False, apart: Collection[str] = ()
) -> Iterator[dict[str, Path]]:
    """Give a file to fill for each name in a folder, or in its subfolders. A folder that is new appears with all files.

    In a folder that exists, the files are those of `new_files`: the last one reads those that are not `apart`.

    >>> with new_files_in(Path("model"), ["a/weights", "graph"]) as to_fill:
    ...     _ = to_fill["a/weights"].write_text("1"), to_fill["graph"].write_text("2")
    >>> Path("model/a/weights").read_text()
    '1'
    """
    if os.path.lexists(repaired(folder)):
        paths = [folder / name for name in names]
        with new_files(paths, force=force, apart=[folder / name for name in apart]) as partials:
            yield dict(zip(names, partials, strict=True))
        return
    with new_folder(folder) as partial:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
        yield {name: partial / name for name in names}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write or replace a JSON file, whole or not at all.

    >>> write_json(Path("plan.json"), {"rows": 3})
    >>> print(Path("plan.json").read_text(), end="")
    {
      "rows": 3
    }
    """
    with new_file(path, force=True) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Give a hidden sibling of `path` with the same suffix, which is removed when the block ends.

    >>> with scratch_file(Path("graph.onnx")) as file:
    ...     file.exists(), file.suffix
    (True, '.onnx')
    """
    with _partial(path, Path.touch, force=True) as partial:
        try:
            yield partial
        finally:
            remove(partial)


def remove_folder(path: Path) -> None:
    """Remove a folder: first its name, in one step, then its content, so that no half of it is ever found.

    >>> Path("run").mkdir()
    >>> remove_folder(Path("run"))
    """
    aside = sibling(path, "partial")  # a dead remover's is removed by `repair`
    os.rename(path, aside)
    remove(aside)


def check_free(path: Path, *, force: bool = False, kind: Kind | None = None, foreign: Foreign = anything) -> None:
    """Call `repair`, then raise an error if `path` cannot be made. Callers do this before long work.

    Args:
        path: the file or folder.
        force: it may be replaced.
        kind: what it will be; None: the caller does not know yet.
        foreign: what of an existing folder must not be lost.

    Raises:
        FileExistsError: `path` exists and `force` is not set, it is of another kind, or it has a foreign entry.
        NotADirectoryError: a parent of `path` is a file.
        OSError: the name is so long that the partial's would be too long.
        PermissionError: this process may not write to the folder of `path`, or to the folder that it would replace.

    >>> check_free(Path("new folder/sae"))
    """
    repair(path)
    _refuse_existing(path, force=force, kind=kind, foreign=foreign)
    if len(os.fsencode(sibling(path, "partial").name)) > _LONGEST_NAME:
        raise OSError(f"the name of {path} is too long to be written whole or not at all; name a shorter one")
    home = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not home.is_dir():
        what = "a file" if home.exists() else "a link to nothing"
        raise NotADirectoryError(f"{home} is {what}, so {path} cannot be made in it; name another path")
    if not os.access(home, os.W_OK | os.X_OK):
        raise PermissionError(f"you may not write to {home}, so {path} cannot be made in it; name another path")


def _refuse_existing(path: Path, *, force: bool, kind: Kind | None, foreign: Foreign = anything) -> None:
    if path.name in ("", ".."):
        raise FileExistsError(f"{path} is a folder by its place, not by its name; name it from outside of it")
    if not os.path.lexists(path):
        return
    is_folder = path.is_dir()
    if is_folder and kind == "file":
        raise FileExistsError(f"{path} is a folder; name a file in it")
    if path.is_file() and kind == "folder":
        raise FileExistsError(f"{path} is a file; name a folder")
    if path.exists() and not is_folder and not path.is_file():
        raise FileExistsError(f"{path} is neither a file nor a folder; name another output")
    if os.path.ismount(path):  # as a volume of a container is; no rename moves it
        raise FileExistsError(f"{path} is a mount point, which nothing can replace; name a path in it, or another one")
    if not force:
        raise FileExistsError(f"{path} already exists; pass --force to replace it, in Python force=True")
    if not is_folder or path.is_symlink():
        return
    if Path(os.path.realpath(".")).is_relative_to(os.path.realpath(path)):
        raise FileExistsError(f"{path} is or holds the current folder; run this from outside of it")
    if not os.access(path, os.W_OK | os.X_OK):  # the folder may be renamed, but what it holds could not be removed
        raise PermissionError(f"you may not write to {path}, so it cannot be replaced; name another output")
    if (name := foreign(path)) is not None:
        raise FileExistsError(f"{path} holds {name}, which would be lost; name another output")


@contextlib.contextmanager
def _partial(
    path: Path, make: Callable[[Path], None], *, force: bool, kind: Kind | None = None, foreign: Foreign = anything
) -> Iterator[Path]:
    """Make a partial of `path` and lock it until the block ends; remove it, and new parents, if the block raises."""
    check_free(path, force=force, kind=kind, foreign=foreign)
    parents = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            partial = sibling(path, "partial")
            make(partial)
            with lock(partial) as locked:
                # Before we got the lock, another writer may have taken the partial for that of a dead writer.
                if locked is False:
                    continue
                try:
                    with naming(path, partial):
                        yield partial
                except BaseException:  # Ctrl-C too
                    remove(partial)
                    raise
                return
    except BaseException:
        for parent in parents:
            with contextlib.suppress(OSError):  # only an empty one goes
                parent.rmdir()
        raise
