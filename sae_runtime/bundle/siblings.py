"""The hidden siblings of a path that its writers leave: partials, which a live writer locks, and old content."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows has no flock: partials of killed writers stay, and no writer waits)
    fcntl = None  # type: ignore[assignment]

LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(partial(\.\w+)?|old)")
"""The name of a sibling, in which `name` is that of the path."""
_TOKEN = re.compile("[0-9a-f]{8}")


def repaired(path: Path) -> Path:
    """The same path, after `repair` of it and of its missing parents. Readers ask this before they say that it is gone.

    >>> repaired(Path("results/a.txt"))
    PosixPath('results/a.txt')
    """
    for parent in reversed(path.parents):
        if not parent.exists():
            repair(parent)
    repair(path)
    return path


def is_there(path: Path) -> bool:
    """Whether there is something at the path, be it that a writer is putting another folder there at this moment.

    >>> is_there(Path("results"))
    False
    """
    replaced = path.parent.is_dir() and bool(siblings(path, "old"))
    return replaced or path.exists()  # looked for last: the writer puts it there before the old one goes


def repair(path: Path) -> None:
    """Undo an unfinished replacement of `path` by a dead writer, and remove the partials of dead writers.

    >>> repair(Path("results"))
    """
    if not path.parent.is_dir():
        return
    for old in siblings(path, "old"):
        # A live writer between its two renames locks its partial; a dead writer does not.
        if any(is_held(p) for p in siblings(path, "partial")):
            continue
        if os.path.lexists(path):
            remove_old(old, path)
        else:
            with contextlib.suppress(FileNotFoundError):  # another process repairs it at the same time
                old.rename(path)
    for partial in siblings(path, "partial"):
        with lock(partial) as locked:
            if locked:
                remove(partial)


def sibling(path: Path, kind: str) -> Path:
    """A new name beside a path; `kind` is "partial" or "old". A partial keeps the suffix, by which writers choose.

    A sibling of a sibling is one of the same path, so that `repair` of that path finds it.

    >>> sibling(Path("sae.onnx"), "partial").suffix
    '.onnx'
    """
    inner = LEFTOVER.fullmatch(path.name)
    name = path.name if inner is None else inner["name"]
    suffix = path.suffix if kind == "partial" else ""
    return path.with_name(f".{name}.{os.urandom(4).hex()}.{kind}{suffix}")


def siblings(path: Path, kind: str) -> list[Path]:
    """The siblings that `sibling` named for this path, without those of a longer name such as sae.state.

    >>> siblings(Path("results"), "old")
    []
    """
    start, end = f".{path.name}.", f".{kind}{path.suffix if kind == 'partial' else ''}"
    found = (name for name in os.listdir(path.parent) if name.startswith(start) and name.endswith(end))
    return [path.with_name(name) for name in found if _TOKEN.fullmatch(name, len(start), len(name) - len(end))]


def remove(path: Path) -> None:
    """Remove a sibling, file or folder. What cannot be removed stays for `repair`.

    What a library wrote beside a partial goes too: onnx_ir has a folder `.NAME.RANDOM` for the weights of NAME.

    >>> remove(Path("nothing.here"))
    """
    if LEFTOVER.fullmatch(path.name) and path.parent.is_dir():
        for name in os.listdir(path.parent):
            if name.startswith(f".{path.name}."):
                remove(path.with_name(name))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # `repair` tries again
            path.unlink()


def remove_old(old: Path, path: Path) -> None:
    """Remove the old content of a path, first its name: a half of it must never be moved back.

    >>> remove_old(Path(".results.00000000.old"), Path("results"))
    """
    partial = sibling(path, "partial")
    try:
        old.rename(partial)
    except OSError:
        partial = old
    remove(partial)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool | None]:
    """Lock a file or folder while the block runs; the kernel frees the lock of a process that dies.

    Args:
        path: the file or folder.
        wait: until another process frees the lock.

    Yields:
        Whether this process has the lock. None: the system or the disk has no locks.

    >>> with lock(Path("nothing.here")) as locked:
    ...     locked
    False
    """
    if fcntl is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    except (FileNotFoundError, PermissionError):  # that of another user is left alone
        yield False
        return
    try:
        locked: bool | None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = os.path.samestat(os.fstat(descriptor), os.stat(path))  # it may be gone or replaced by now
        except (BlockingIOError, FileNotFoundError):
            locked = False
        except OSError:  # NFS locks no folder
            locked = None
        yield locked
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a live writer holds the lock of a partial.

    >>> is_held(Path("nothing.here"))
    False
    """
    with lock(path) as locked:
        return not locked and path.exists()


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder.

    >>> sync(Path("."))
    """
    windows = os.name == "nt"
    if windows and path.is_dir():  # it cannot be opened there
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
