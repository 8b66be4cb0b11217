"""Where the files of a graph lie: onnxruntime reads them at or below the graph's own folder only."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sae_runtime.bundle import files

How = Literal["referred", "copied"]


@dataclass
class Placement:
    """The folder of a graph, and how the graph reaches each file that it needs.

    The graph refers to a file at or below the folder where it is. Any other file is copied into the folder.
    """

    folder: Path
    locations: dict[Path, str] = field(default_factory=dict)  # by file: its path from the folder, with "/"
    how: dict[str, How] = field(default_factory=dict)  # by location

    def locate(self, file: Path, below: str = "") -> str:
        """The path of the file from the folder; a file that has to be copied goes into the subfolder `below`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another file of this name goes to the same path.
        """
        file = file.resolve()
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which holds weights of the graph; copy the model again")
        if file not in self.locations:
            home = self.folder.resolve()
            referred = file.is_relative_to(home)
            location = file.relative_to(home).as_posix() if referred else (Path(below) / file.name).as_posix()
            if location in self.how:
                raise ValueError(f"two files would be {location} in {self.folder}; name another --output or --name")
            self.locations[file], self.how[location] = location, "referred" if referred else "copied"
        return self.locations[file]

    @contextlib.contextmanager
    def filled(self, *, force: bool) -> Iterator[None]:
        """Copy the files that lie elsewhere; remove the copies and new folders again when the block raises.

        Raises:
            FileExistsError: another file has the path of a copy and `force` is not set.
        """
        copies = {self.folder / loc: file for file, loc in self.locations.items() if self.how[loc] == "copied"}
        for target, file in list(copies.items()):
            if target.exists() and target.samefile(file):  # under a second name, such as a link
                self.how[self.locations[file]] = "referred"
                del copies[target]
            else:
                files.check_free(target, force=force)
        made: list[Path] = []
        try:
            for folder in dict.fromkeys([self.folder, *(target.parent for target in copies)]):
                made += _make(folder)
            for target, file in copies.items():
                if not target.exists():
                    made.append(target)
                with files.new_file(target, force=force) as partial:
                    shutil.copyfile(file, partial)
            yield
        except BaseException:  # Ctrl-C too
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
            raise


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents, and name those that were missing, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]
