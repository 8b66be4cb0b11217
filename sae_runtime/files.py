"""Files and folders that appear whole or not at all.

Everything is written into a hidden sibling, fsynced and renamed. A writer that dies leaves only the sibling, which
the next writer to the same path removes; a folder that was moved aside for its replacement is moved back.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows: siblings of killed runs stay until removed by hand)
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill, which becomes `path` when the block ends, or vanishes when the block raises.

    Args:
        path: where the folder will stand; its parents are created.
        force: replace a folder that stands there already.

    Raises:
        FileExistsError: `path` exists and `force` is not set (checked before and after the block).
    """
    check_free(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(path, "partial")
    partial.mkdir()
    with _held(partial), _removed_on_error(partial):
        yield partial
        for file in sorted(partial.rglob("*")):
            _sync(file)
        _sync(partial)
        _refuse_taken(path, force=force)
        if path.exists():
            old = _sibling(path, "old")
            path.rename(old)
            partial.rename(path)
            _sync(path.parent)
            _remove(old)
        else:
            partial.rename(path)
            _sync(path.parent)


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a file name to write, which becomes `path` when the block ends, or vanishes when the block raises.

    The given name keeps the suffix of `path`, for writers that go by it.

    Raises:
        FileExistsError: `path` exists and `force` is not set (checked before and after the block).
    """
    check_free(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(path, "partial")
    partial.touch()
    with _held(partial), _removed_on_error(partial):
        yield partial
        _sync(partial)
        _refuse_taken(path, force=force)
        os.replace(partial, path)
        _sync(path.parent)


def check_free(path: Path, *, force: bool = False) -> None:
    """Repair what a crash left around `path`, then raise FileExistsError if it is taken and not to be replaced."""
    repair(path)
    _refuse_taken(path, force=force)


def _refuse_taken(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f"{path} already exists; pass --force (force=True) to replace it")


def repair(path: Path) -> None:
    """Undo a half-done replacement of `path` and remove siblings whose writer is gone."""
    if not path.parent.is_dir():
        return
    for old in path.parent.glob(f".{_escaped(path)}.*.old"):
        # A live writer between its two renames is told from a dead one by the partial folder that it holds.
        if any(_is_held(p) for p in path.parent.glob(f".{_escaped(path)}.*.partial*")):
            continue
        if path.exists():
            _remove(old)
        else:
            old.rename(path)
    for partial in path.parent.glob(f".{_escaped(path)}.*.partial*"):
        if fcntl is not None and not _is_held(partial):
            _remove(partial)


def _sibling(path: Path, kind: str) -> Path:
    suffix = path.suffix if kind == "partial" else ""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}{suffix}")


def _escaped(path: Path) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in path.name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _removed_on_error(partial: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C too
        _remove(partial)
        raise


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Lock a partial file or folder for as long as its writer lives; the kernel frees the lock of a dead one."""
    if fcntl is None:  # pragma: no cover
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    if fcntl is None:  # pragma: no cover
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
