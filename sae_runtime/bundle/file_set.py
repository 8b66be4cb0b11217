"""Replace several files of a folder together: a process that dies at any moment leaves all the old ones or all the new.

The new files are made in a hidden folder, which one rename turns into `STAGED`: from then on they count. `finish` moves
them to their places, and whoever reads the folder calls it first, so that it ends what a dead process began.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sae_runtime.bundle import files

STAGED = "sae_runtime.staged"
_REMOVED = ".removed"  # ends the name of an empty file that stands for the removal of another


@contextlib.contextmanager
def replaced_together(folder: Path, *, last: str) -> Iterator[Path]:
    """Give a hidden folder inside `folder`; when the block ends, its files replace those of the same names.

    Nothing changes where the block raises.

    Args:
        folder: where the files belong.
        last: name of the file that is moved after all others, since readers go by it.
    """
    with files.new_folder(folder / STAGED, force=True) as staged:
        yield staged
    finish(folder, last=last)


def stage_removal(staged: Path, name: str) -> None:
    """Let the file of this name be removed together with the replacements."""
    (staged / f"{name}{_REMOVED}").touch()


def finish(folder: Path, *, last: str) -> None:
    """Move staged files to their places, where there are some; several processes may do so at once.

    A folder that may not be written to stays as it is.
    """
    staged = folder / STAGED
    files.repair(staged)
    if not staged.is_dir():
        return
    with contextlib.suppress(PermissionError):
        for file in sorted(staged.iterdir(), key=lambda file: (file.name == last, file.name)):
            with contextlib.suppress(FileNotFoundError):  # another process has moved it
                if file.name.endswith(_REMOVED):
                    (folder / file.name.removesuffix(_REMOVED)).unlink(missing_ok=True)
                    file.unlink()
                else:
                    os.replace(file, folder / file.name)
        with contextlib.suppress(FileNotFoundError):
            staged.rmdir()
