"""Files and folders that appear whole or not at all.

A writer fills a hidden sibling (the partial), syncs it to the disk and renames it. It holds a lock on the partial,
which the kernel frees when the writer dies. A folder that is replaced is first moved aside (the old one), since a
folder cannot be renamed onto another. The next writer to the same path, or `repair`, undoes what a crash left:

| the writer dies                        | left behind              | repair                                     |
|----------------------------------------|--------------------------|--------------------------------------------|
| while it fills or syncs                | partial                  | removes the partial, which nobody locks    |
| after it moved the old folder aside    | partial, old; no path    | moves the old one back, removes the partial |
| after it renamed the partial           | path, old                | removes the old one                        |
| after it removed the old folder        | path                     | nothing                                    |

Two writers of one path do not disturb each other: each has a partial of its own, and the last rename wins.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows has no flock: siblings of killed writers stay until removed by hand)
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill, which becomes `path` when the block ends, or vanishes when the block raises.

    Args:
        path: where the folder will be; its parents are created.
        force: replace what exists there.

    Raises:
        FileExistsError: `path` exists and `force` is not set (checked before and after the block).

    >>> with new_folder(Path("results")) as folder:
    ...     _ = (folder / "a.txt").write_text("a")
    >>> [path.name for path in Path("results").iterdir()]
    ['a.txt']
    """
    with _partial(path, Path.mkdir, force=force) as partial:
        yield partial
        mode = partial.stat().st_mode
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                file.chmod(mode & 0o666)  # safetensors makes its files private
            _sync(file)
        _sync(partial)
        _refuse_existing(path, force=force)
        old = _sibling(path, "old") if path.exists() else None
        if old is not None:
            path.rename(old)
        partial.rename(path)
        _sync(path.parent)
        if old is not None:
            _remove(old)


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a file name to write, which becomes `path` when the block ends, or vanishes when the block raises.

    The given name has the suffix of `path`, for writers that choose a format by it.

    Args:
        path: where the file will be; its parents are created.
        force: replace what exists there.

    Raises:
        FileExistsError: `path` exists and `force` is not set (checked before and after the block).

    >>> with new_file(Path("notes.txt")) as partial:
    ...     _ = partial.write_text("whole")
    >>> Path("notes.txt").read_text()
    'whole'
    """
    with _partial(path, Path.touch, force=force) as partial:
        mode = partial.stat().st_mode
        yield partial
        with _lock(partial):  # again, since safetensors replaces the partial by a file of its own
            partial.chmod(mode)  # which is private
            _sync(partial)
            _refuse_existing(path, force=force)
            os.replace(partial, path)
            _sync(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, and replace what exists there.

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
    """Give a hidden sibling of `path` to write, with its suffix, which vanishes when the block ends."""
    with _partial(path, Path.touch, force=True) as partial:
        try:
            yield partial
        finally:
            _remove(partial)


def check_free(path: Path, *, force: bool = False) -> None:
    """Repair what a crash left around `path`, then raise if it cannot be made; call this before long work.

    Raises:
        FileExistsError: `path` exists and `force` is not set.
        NotADirectoryError: a parent of `path` is a file.
        PermissionError: the folder for `path` may not be written to.

    >>> check_free(Path("new folder/sae"))
    """
    repair(path)
    _refuse_existing(path, force=force)
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if not home.is_dir():
        raise NotADirectoryError(f"{home} is a file, so {path} cannot be made in it; name another place")
    if not os.access(home, os.W_OK | os.X_OK):
        raise PermissionError(f"{home} may not be written to, so {path} cannot be made in it; name another place")


def repair(path: Path) -> None:
    """Undo a replacement of `path` that a crash interrupted, and remove partials whose writer is dead.

    >>> repair(Path("results"))
    """
    if not path.parent.is_dir():
        return
    for old in _siblings(path, "old"):
        # A live writer between its two renames holds its partial; a dead one does not.
        if any(_is_held(p) for p in _siblings(path, "partial")):
            continue
        if path.exists():
            _remove(old)
        else:
            with contextlib.suppress(FileNotFoundError):  # another process repaired it meanwhile
                old.rename(path)
    for partial in _siblings(path, "partial"):
        with _lock(partial) as locked:
            if locked:
                _remove(partial)


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f"{path} already exists; pass --force to replace it")


def _sibling(path: Path, kind: str) -> Path:
    suffix = path.suffix if kind == "partial" else ""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}{suffix}")


def _siblings(path: Path, kind: str) -> list[Path]:
    """The siblings that `_sibling` named for this path, not those of a longer name such as sae.checkpoint."""
    name = "".join(f"[{c}]" if c in "*?[" else c for c in path.name)
    suffix = path.suffix if kind == "partial" else ""
    return list(path.parent.glob(f".{name}.{'[0-9a-f]' * 8}.{kind}{suffix}"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _partial(path: Path, make: Callable[[Path], None], *, force: bool) -> Iterator[Path]:
    """Make a partial for `path` and hold its lock until the block ends; remove it when the block raises."""
    check_free(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial = _sibling(path, "partial")
        make(partial)
        with _lock(partial) as locked:
            # Before the lock was held, another writer may have removed the partial as a leftover.
            if fcntl is not None and not (locked and partial.exists()):
                continue
            try:
                yield partial
            except BaseException:  # Ctrl-C too
                _remove(partial)
                raise
            return


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Lock a partial, and say whether that worked: not where it is gone or a live writer holds it."""
    try:
        descriptor = None if fcntl is None else os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = None
    if descriptor is None:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    with _lock(path) as locked:
        return not locked and path.exists()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
