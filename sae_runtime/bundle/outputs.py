"""Whether a command may write to a path; asked before long work begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sae_runtime.bundle.files import check_free


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file or folder that will be written.

    Attributes:
        path: where it will be.
        kind: "file" or "folder"; None where the writer decides.
        force: replace what exists there.
        inputs: what must not be overwritten, by the names that messages call it.
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
        """Raise unless the output may be written.

        Raises:
            FileExistsError: the path exists and `force` is not set, is of the other kind, or holds what is foreign.
            NotADirectoryError: a parent of the path is a file.
            PermissionError: the folder for the path may not be written to.
            ValueError: the path is "-", or it is, holds or lies in an input.
        """
        self.refuse_loss()
        check_free(self.path, force=self.force)

    def refuse_loss(self) -> None:
        """As `check`, but the path may exist; for a folder that is filled where it is."""
        path = self.path
        if str(path) == "-":
            raise ValueError("the output - would be standard output, which cannot be written to; name a path")
        refuse_inputs(path, self.inputs)
        if self.kind == "file" and path.is_dir():
            raise FileExistsError(f"{path} is a folder; name a file in it")
        if self.kind == "folder" and path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; name a folder")
        if self.force and self.foreign is not None and path.is_dir() and (name := self.foreign(path)) is not None:
            raise FileExistsError(f"{path} holds {name}, which would be lost; name another output")


def refuse_inputs(output: Path, inputs: Mapping[str, Path]) -> None:
    """Raise ValueError if the output is an input, holds one, or would lie in one.

    >>> refuse_inputs(Path("acts/features.parquet"), {"activations": Path("acts")})
    Traceback (most recent call last):
    ValueError: the output acts/features.parquet would lie inside the activations acts; name another output
    """
    resolved = output.resolve()
    for name, path in inputs.items():
        if resolved in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"the output {output} is or holds the {name} {path}; name another output")
        if path.resolve() in resolved.parents:
            raise ValueError(f"the output {output} would lie inside the {name} {path}; name another output")
