"""Checks of the path that a command will write, before its long work begins."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sae_runtime.bundle.files import Foreign, Kind, anything, check_free


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file or folder that will be written.

    Attributes:
        path: the file or folder.
        kind: "file" or "folder".
        force: replace an existing file or folder.
        inputs: paths that the output must not overwrite, by their names in messages.
        foreign: gives the name of an entry of an existing folder that `force` must not destroy, or None; without it,
            only an empty folder is replaced.

    >>> Output(path=Path("out.parquet"), kind="file", inputs={"bundle": Path("my-sae")}).check()
    >>> Output(path=Path("my-sae"), kind="folder", inputs={"bundle": Path("my-sae")}).check()
    Traceback (most recent call last):
    ValueError: the output my-sae is or holds the bundle my-sae; name another output
    """

    path: Path
    kind: Kind
    force: bool = False
    inputs: Mapping[str, Path] = field(default_factory=dict)
    foreign: Foreign = anything

    def check(self) -> None:
        """Raise an error if the output cannot be written, or if writing it would lose other files.

        Raises:
            FileExistsError: the path exists and `force` is not set, it is of the other kind, or it has a foreign entry.
            NotADirectoryError: a parent of the path is a file.
            PermissionError: this process may not write to the folder of the path.
            ValueError: the path is "-", or it is, holds or is inside an input.
        """
        if str(self.path) == "-":
            raise ValueError("the output - would be standard output, which is not supported; name a path")
        refuse_inputs(self.path, self.inputs)
        check_free(self.path, force=self.force, kind=self.kind, foreign=self.foreign)


def refuse_inputs(output: Path, inputs: Mapping[str, Path]) -> None:
    """Raise ValueError if the output is an input, holds an input, or would be inside an input.

    >>> refuse_inputs(Path("acts/features.parquet"), {"activations": Path("acts")})
    Traceback (most recent call last):
    ValueError: the output acts/features.parquet would be inside the activations acts; name another output
    """
    written = _with_parents(output)
    for name, path in inputs.items():
        read = _with_parents(path)
        if any(_is_same(written[0], each) for each in read):
            raise ValueError(f"the output {output} is or holds the {name} {path}; name another output")
        if any(_is_same(read[0], each) for each in written):
            raise ValueError(f"the output {output} would be inside the {name} {path}; name another output")


def _with_parents(path: Path) -> list[Path]:
    real = Path(os.path.realpath(path))
    return [real, *real.parents]


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one, by their names or, where the disk takes SAE for sae, by what they lead to."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False
