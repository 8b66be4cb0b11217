"""Give partials the names of their paths: what fails half way is undone, and what was replaced is removed last."""

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from sae_runtime.bundle.exchange import NO_SUCH_CALL, exchange, rename_to_free
from sae_runtime.bundle.siblings import lock, remove, remove_old, sibling, sync


def put_all(partials: Mapping[Path, Path], *, force: bool, apart: Collection[Path] = ()) -> None:
    """Give partials the names of their paths, the last one last. What they replace is removed when all have them.

    Args:
        partials: the filled and synced files or folders, by the paths that they become.
        force: replace what has a path's name.
        apart: paths that the last file does not read; for a moment, a new one may stand beside the old last file.

    Raises:
        FileExistsError: something has a path's name and `force` is not set.
        OSError: the system refuses a step; those before it are undone.

    >>> _ = Path("partial").write_text("1")
    >>> put_all({Path("whole"): Path("partial")}, force=False)
    >>> Path("whole").read_text()
    '1'
    """
    *others, last = partials
    left, olds = list(partials.values()), {}
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as locked:
        if any(os.path.lexists(path) for path in others if path not in apart) and os.path.lexists(last):
            aside = sibling(last, "partial")
            undo.callback(_back, aside, last)
            os.rename(last, aside)
            locked.enter_context(lock(aside))
            left.append(aside)
        for path, partial in partials.items():
            if (old := _put(partial, path, undo, force=force, in_group=bool(others))) is not None:
                olds[old] = path
        for home in {path.parent for path in partials}:
            sync(home)
        undo.pop_all()
    for path in left:
        remove(path)
    for old, path in olds.items():
        remove_old(old, path)


def _put(partial: Path, path: Path, undo: contextlib.ExitStack, *, force: bool, in_group: bool) -> Path | None:
    """Give a partial the name of its path, and give where the old content is, unless it is under the partial's name."""
    while True:
        try:
            _give_free_name(partial, path)
            undo.callback(_withdraw, path, partial)
            return None
        except FileExistsError:
            if not force:
                raise FileExistsError(
                    f"{path} already exists; pass --force to replace it, in Python force=True"
                ) from None
        try:
            if exchange(partial, path):
                undo.callback(_quietly, exchange, partial, path)
                return None
            return _put_in_two_steps(partial, path, undo, in_group=in_group)
        except FileNotFoundError:
            if os.path.lexists(path) or not os.path.lexists(partial):
                raise
            # Another process has moved the path meanwhile, and now its name is free.


def _put_in_two_steps(partial: Path, path: Path, undo: contextlib.ExitStack, *, in_group: bool) -> Path:
    """Replace a path without an exchange, and give where the old content is."""
    old = sibling(path, "old")
    undo.callback(_back, old, path)
    if partial.is_dir() or not _has_second_name(path, old) and in_group:
        path.rename(old)
        partial.rename(path)
        undo.callback(_quietly, path.rename, partial)
    else:
        os.replace(partial, path)  # a file alone is never missing, even where no second name can keep the old one
    return old


def _has_second_name(path: Path, name: Path) -> bool:
    """Give a file a second name, where the file system has hard links."""
    try:
        os.link(path, name, follow_symlinks=False)
    except (OSError, NotImplementedError):  # Windows may not know the argument
        return False
    return True


def _give_free_name(partial: Path, path: Path) -> None:
    """Rename a partial to its path; FileExistsError if something has the name."""
    if rename_to_free(partial, path):
        return
    if partial.is_file():
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL:
                raise
        else:
            partial.unlink()
            return
    if os.path.lexists(path):
        raise FileExistsError(path)
    partial.rename(path)


def _back(old: Path, path: Path) -> None:
    """Give the old content its name again, after a step failed."""
    if not os.path.lexists(old):
        return
    try:
        os.replace(old, path)
        remove(old)  # a second name of the same file is left where it is by `replace`
    except OSError as error:
        raise OSError(f"{path} could not be put back ({error.strerror}); what it held is in {old}") from error


def _withdraw(path: Path, partial: Path) -> None:
    """Let a name be free again, as it was. What a failing disk does not rename back is removed: that needs no space."""
    try:
        os.rename(path, partial)
    except OSError:
        remove(path)


def _quietly(step: Callable[..., object], *paths: Path) -> None:
    """Undo a step if that is possible; if not, the new content stays, whole, and the caller says what failed first."""
    with contextlib.suppress(OSError):
        step(*paths)
