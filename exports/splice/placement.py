"""Where the files of a graph are: onnxruntime reads files in or below the graph's own folder only."""

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

    The graph refers to a file in or below its folder where the file is. Every other file is copied into the folder.

    >>> placement = Placement(Path("out"))
    >>> placement.locate(Path(bundle_path) / "sae_weights.safetensors", below="sae")
    'sae/sae_weights.safetensors'
    >>> placement.how
    {'sae/sae_weights.safetensors': 'copied'}
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
            inside = file.is_relative_to(home)
            location = file.relative_to(home).as_posix() if inside else (Path(below) / file.name).as_posix()
            if location in self.how:
                raise ValueError(f"two files would be {location} in {self.folder}; name another --output or --name")
            target = self.folder / location
            linked = target.exists() and target.samefile(file)  # the file has a second name there
            self.locations[file], self.how[location] = location, "referred" if inside or linked else "copied"
        return self.locations[file]

    @contextlib.contextmanager
    def filled(self, *, force: bool) -> Iterator[None]:
        """Copy the files that are elsewhere; when the block raises, remove the copies and the new folders again.

        Raises:
            FileExistsError: another file has the path of a copy and `force` is not set.
        """
        copies = {self.folder / loc: file for file, loc in self.locations.items() if self.how[loc] == "copied"}
        for target in copies:
            files.check_free(target, force=force)
        with contextlib.ExitStack() as undo:
            _make(self.folder, undo)
            for target, file in copies.items():
                _make(target.parent, undo)
                if not target.exists():
                    undo.callback(_remove, target)
                with files.new_file(target, force=force) as partial:
                    shutil.copyfile(file, partial)
            yield
            undo.pop_all()


def _make(folder: Path, undo: contextlib.ExitStack) -> None:
    """Make a folder and its missing parents; `undo` removes them."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir()
            undo.callback(_remove, path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()
