"""Checks of the path that a command will write, before its long work begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sae_runtime.bundle.files import check_free


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file or folder that will be written.

    Attributes:
        path: the file or folder.
        kind: "file" or "folder"; None if the writer decides.
        force: replace an existing file or folder.
        inputs: paths that the output must not overwrite, by their names in messages.
        foreign: gives the name of an entry of an existing folder that `force` must not destroy, or None.

    >>> Output(path=Path("out.parquet"), kind="file", inputs={"bundle": Path("my-sae")}).check()
    >>> Output(path=Path("my-sae"), inputs={"bundle": Path("my-sae")}).check()
    Traceback (most recent call last):
    ValueError: the output my-sae is or holds the bundle my-sae; name another output
    """

    path: Path
    kind: Literal["file", "folder"] | None = None
    force: bool = False
    inputs: Mapping[str, Path] = field(default_factory=dict)
    foreign: Callable[[Path], str | None] | None = None

    def check(self) -> None:
        """Raise an error if the output cannot be written, or if writing it would lose other files.

        Raises:
            FileExistsError: the path exists and `force` is not set, it is of the other kind, or it has a foreign entry.
            NotADirectoryError: a parent of the path is a file.
            PermissionError: this process may not write to the folder of the path.
            ValueError: the path is "-", or it is, holds or is inside an input.
        """
        self.refuse_loss()
        check_free(self.path, force=self.force)

    def refuse_loss(self) -> None:
        """As `check`, but the path may exist without `force`; for a folder that gets more files."""
        path = self.path
        if str(path) == "-":
            raise ValueError("the output - would be standard output, which is not supported; name a path")
        refuse_inputs(path, self.inputs)
        if self.kind == "file" and path.is_dir():
            raise FileExistsError(f"{path} is a folder; name a file in it")
        if self.kind == "folder" and path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; name a folder")
        if self.force and self.foreign is not None and path.is_dir() and (name := self.foreign(path)) is not None:
            raise FileExistsError(f"{path} holds {name}, which would be lost; name another output")


def refuse_inputs(output: Path, inputs: Mapping[str, Path]) -> None:
    """Raise ValueError if the output is an input, holds an input, or would be inside an input.

    >>> refuse_inputs(Path("acts/features.parquet"), {"activations": Path("acts")})
    Traceback (most recent call last):
    ValueError: the output acts/features.parquet would be inside the activations acts; name another output
    """
    resolved = output.resolve()
    for name, path in inputs.items():
        if resolved in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"the output {output} is or holds the {name} {path}; name another output")
        if path.resolve() in resolved.parents:
            raise ValueError(f"the output {output} would be inside the {name} {path}; name another output")
