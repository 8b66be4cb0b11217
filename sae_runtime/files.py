"""Files and folders that appear whole or not at all.

Everything is written into a hidden sibling, fsynced and renamed. A writer that dies leaves only the sibling, which
the next writer to the same path removes; a folder that was moved aside for its replacement is moved back.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
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
    with _claimed(path, Path.mkdir) as partial, _removed_on_error(partial):
        yield partial
        mode = partial.stat().st_mode
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                file.chmod(mode & 0o666)  # safetensors makes its files private
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
    with _claimed(path, Path.touch) as partial, _removed_on_error(partial):
        mode = partial.stat().st_mode
        yield partial
        with _lock(partial):  # again: safetensors puts a file of its own there
            partial.chmod(mode)  # and makes it private
            _sync(partial)
            _refuse_taken(path, force=force)
            os.replace(partial, path)
            _sync(path.parent)


@contextlib.contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Give a hidden sibling of `path` to write, with its suffix, which vanishes when the block ends."""
    repair(path)
    with _claimed(path, Path.touch) as partial:
        try:
            yield partial
        finally:
            _remove(partial)


def check_free(path: Path, *, force: bool = False) -> None:
    """Repair what a crash left around `path`, then raise if it cannot be made; to be called before long work.

    Raises:
        FileExistsError: `path` is taken and not to be replaced.
        NotADirectoryError: what should hold it is a file.
        PermissionError: what should hold it may not be written to.
    """
    repair(path)
    _refuse_taken(path, force=force)
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if not home.is_dir():
        raise NotADirectoryError(f"{home} is a file, so {path} cannot be made in it; name another place")
    if not os.access(home, os.W_OK | os.X_OK):
        raise PermissionError(f"{home} may not be written to, so {path} cannot be made in it; name another place")


def _refuse_taken(path: Path, *, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f"{path} already exists; pass --force (force=True) to replace it")


def repair(path: Path) -> None:
    """Undo a half-done replacement of `path` and remove siblings whose writer is gone."""
    if not path.parent.is_dir():
        return
    for old in _siblings(path, "old"):
        # A live writer between its two renames is told from a dead one by the partial folder that it holds.
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


def _sibling(path: Path, kind: str) -> Path:
    suffix = path.suffix if kind == "partial" else ""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}{suffix}")


def _siblings(path: Path, kind: str) -> list[Path]:
    """Those that `_sibling` named; not those of another path that begins like this one, such as sae.checkpoint's."""
    name = "".join(f"[{c}]" if c in "*?[" else c for c in path.name)
    suffix = path.suffix if kind == "partial" else ""
    return list(path.parent.glob(f".{name}.{'[0-9a-f]' * 8}.{kind}{suffix}"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
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
def _claimed(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make a partial file or folder for `path` and hold its lock for as long as its writer lives."""
    while True:
        partial = _sibling(path, "partial")
        make(partial)
        with _lock(partial) as locked:
            # Between the making and the lock, another writer may have taken it for the leftover of a dead one.
            if fcntl is None or (locked and partial.exists()):
                yield partial
                return


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Lock a partial file or folder, unless it is gone or its writer lives; the kernel frees a dead one's lock."""
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
