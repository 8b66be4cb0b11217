"""Files and folders that appear whole or not at all.

A writer fills a hidden sibling (the partial), syncs it to the disk and renames it to the path. It holds a lock on the
partial, which the kernel frees when the writer dies. A folder cannot be renamed onto another folder, so an existing
folder is first moved aside (the old one). If a writer died, `repair` or the next writer of the same path cleans up:

| the writer died                        | left on the disk         | repair                                      |
|----------------------------------------|--------------------------|---------------------------------------------|
| while it filled or synced              | partial                  | removes the partial, which has no lock      |
| after it moved the old folder aside    | partial, old; no path    | moves the old one back, removes the partial |
| after it renamed the partial           | path, old                | removes the old one                         |
| after it removed the old folder        | path                     | nothing                                     |

Two writers of one path do not disturb each other: each has its own partial, and the last rename wins.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_runtime.bundle.disk_errors import naming

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows has no flock, so partials of killed writers stay there)
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill. It becomes `path` when the block ends, and is removed if the block raises.

    Args:
        path: the folder; its parents are created.
        force: replace an existing file or folder.

    Raises:
        FileExistsError: `path` exists and `force` is not set; checked before and after the block.

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
    """Give an empty file to fill. It becomes `path` when the block ends, and is removed if the block raises.

    Its name has the suffix of `path`, for writers that choose the format by the suffix.

    Args:
        path: the file; its parents are created.
        force: replace an existing file.

    Raises:
        FileExistsError: `path` exists and `force` is not set; checked before and after the block.

    >>> with new_file(Path("notes.txt")) as partial:
    ...     _ = partial.write_text("whole")
    >>> Path("notes.txt").read_text()
    'whole'
    """
    with _partial(path, Path.touch, force=force) as partial:
        mode = partial.stat().st_mode
        yield partial
        with _lock(partial):  # again, because safetensors replaces the partial by a new file, which only we may read
            partial.chmod(mode)
            _sync(partial)
            _refuse_existing(path, force=force)
            os.replace(partial, path)
            _sync(path.parent)


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
            _remove(partial)


def check_free(path: Path, *, force: bool = False) -> None:
    """Call `repair`, then raise an error if `path` cannot be made. Callers do this before long work.

    Raises:
        FileExistsError: `path` exists and `force` is not set.
        NotADirectoryError: a parent of `path` is a file.
        PermissionError: this process may not write to the folder of `path`.

    >>> check_free(Path("new folder/sae"))
    """
    repair(path)
    _refuse_existing(path, force=force)
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if not home.is_dir():
        raise NotADirectoryError(f"{home} is a file, so {path} cannot be made in it; name another path")
    if not os.access(home, os.W_OK | os.X_OK):
        raise PermissionError(f"you may not write to {home}, so {path} cannot be made in it; name another path")


def repair(path: Path) -> None:
    """Undo an unfinished replacement of `path` by a dead writer, and remove the partials of dead writers.

    >>> repair(Path("results"))
    """
    if not path.parent.is_dir():
        return
    for old in _siblings(path, "old"):
        # A live writer between its two renames locks its partial; a dead writer does not.
        if any(_is_held(p) for p in _siblings(path, "partial")):
            continue
        if path.exists():
            _remove(old)
        else:
            with contextlib.suppress(FileNotFoundError):  # another process repairs it at the same time
                old.rename(path)
    for partial in _siblings(path, "partial"):
        with _lock(partial) as locked:
            if locked:
                _remove(partial)


def exists(path: Path) -> bool:
    """Whether there is something at the path, be it that a writer is putting another folder there at this moment.

    >>> exists(Path("results"))
    False
    """
    return path.exists() or bool(_siblings(path, "old")) or path.exists()


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f"{path} already exists; pass --force to replace it")


def _sibling(path: Path, kind: str) -> Path:
    suffix = path.suffix if kind == "partial" else ""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}{suffix}")


def _siblings(path: Path, kind: str) -> list[Path]:
    """The siblings that `_sibling` named for this path, without those of a longer name such as sae.state."""
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
    """Make a partial of `path` and lock it until the block ends; remove it if the block raises."""
    check_free(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial = _sibling(path, "partial")
        make(partial)
        with _lock(partial) as locked:
            # Before we got the lock, another writer may have taken the partial for that of a dead writer.
            if fcntl is not None and not (locked and partial.exists()):
                continue
            try:
                with naming(path, partial):
                    yield partial
            except BaseException:  # Ctrl-C too
                _remove(partial)
                raise
            return


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Try to lock a partial, and give whether this process has the lock; a live writer may have it already."""
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
