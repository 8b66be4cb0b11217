"""Replace several files of a folder together: if the process dies, readers see all old files or all new ones.

The new files are made in a hidden folder. One rename turns it into the folder `STAGED`, and from then on the new files
count. `finish` moves them into the folder. A reader calls `finish` first, in case a writer died before it had moved
all files. A writer that works from what it read gives a check, which runs while no other writer may replace files.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sae_runtime.bundle import files
from sae_runtime.bundle.siblings import lock, repair

STAGED = "sae_runtime.staged"
_REMOVED = ".removed"  # suffix of an empty staged file, which means: remove the file of the name before it


@contextlib.contextmanager
def replaced_together(folder: Path, *, last: str, check: Callable[[], None] | None = None) -> Iterator[Path]:
    """Give a hidden folder to fill. When the block ends, its files replace the files of the same names in `folder`.

    If the block raises, nothing changes.

    Args:
        folder: the folder of the files.
        last: name of the file that is moved last, because readers start with it.
        check: raises an error if the files are no longer those that the new ones were made from; called when the new
            ones are complete.

    >>> Path("set").mkdir()
    >>> with replaced_together(Path("set"), last="b") as staged:
    ...     (staged / "a").touch(), (staged / "b").touch()
    (None, None)
    >>> sorted(path.name for path in Path("set").iterdir())
    ['a', 'b']
    """
    with contextlib.ExitStack() as turn:
        with files.new_folder(folder / STAGED, force=True, foreign=lambda _: None) as staged:
            yield staged
            turn.enter_context(lock(folder, wait=True))
            finish(folder, last=last)  # what another writer left
            if check is not None:
                check()
        finish(folder, last=last)


def stage_removal(staged: Path, name: str) -> None:
    """Mark a file of the folder, by name, so that it is removed together with the replacements."""
    (staged / f"{name}{_REMOVED}").touch()


def finish(folder: Path, *, last: str) -> None:
    """Move staged files into the folder, if there are any. Several processes may do so at once.

    If this process may not write to the folder, the folder stays as it is.
    """
    staged = folder / STAGED
    repair(staged)
    if not staged.is_dir():
        return
    with contextlib.suppress(PermissionError, FileNotFoundError):  # or another process has moved them all
        for file in sorted(staged.iterdir(), key=lambda file: (file.name == last, file.name)):
            with contextlib.suppress(FileNotFoundError):  # another process has moved it
                if file.name.endswith(_REMOVED):
                    (folder / file.name.removesuffix(_REMOVED)).unlink(missing_ok=True)
                    file.unlink()
                else:
                    os.replace(file, folder / file.name)
        with contextlib.suppress(OSError):  # another process has removed it, or staged the next files
            staged.rmdir()
