"""Where the files that a graph refers to lie: onnxruntime reads them at or below the graph's own folder only."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

How = Literal["referred", "linked", "copied"]


@dataclass
class Placement:
    """A folder, and how each file that its graph needs comes to lie in it.

    A file at or below the folder is referred to where it is. Any other is copied into it, or linked where that is
    asked for and the file system can: a hard link takes no space, but onnx and onnx-ir refuse to read weights from a
    file that has two names, the one beside the original graph included; onnxruntime reads both.
    """

    folder: Path
    link: bool = False
    locations: dict[Path, str] = field(default_factory=dict)  # by file: its path from the folder, with "/"
    how: dict[str, How] = field(default_factory=dict)  # by location

    def locate(self, file: Path, below: str = "") -> str:
        """The file's path from the folder; where it has to be brought there, in the subfolder `below`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another file of this name goes to the same place.
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
        """Bring the files that lie elsewhere; what was made is removed again when the block raises.

        Raises:
            FileExistsError: another file stands in a place and `force` is not set.
        """
        foreign = {self.folder / loc: file for file, loc in self.locations.items() if self.how[loc] != "referred"}
        for target, file in foreign.items():
            if target.exists() and not target.samefile(file) and not force:
                raise FileExistsError(f"{target} already exists; pass --force (force=True) to replace it")
        made: list[Path] = []
        try:
            for folder in dict.fromkeys([self.folder, *(target.parent for target in foreign)]):
                made += _make(folder)
            for target, file in foreign.items():
                if target.exists() and target.samefile(file):
                    self.how[self.locations[file]] = "linked"
                    continue
                if not target.exists():
                    made.append(target)
                self.how[self.locations[file]] = _bring(file, target, link=self.link)
            yield
        except BaseException:
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
            raise


def _make(folder: Path) -> list[Path]:
    """The folders that had to be made for it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _bring(file: Path, target: Path, *, link: bool) -> How:
    """Link a file to its place, or copy it; it appears whole."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        linked = link and _linked(file, partial)
        if not linked:
            shutil.copyfile(file, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return "linked" if linked else "copied"


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        return False
    return True
