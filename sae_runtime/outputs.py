"""Whether a command may write to a path; asked before long work begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sae_runtime.files import check_free


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file or folder that will be written.

    Attributes:
        path: where it will be.
        kind: "file" or "folder"; None where the writer decides.
        force: replace what exists there.
        inputs: what must not be overwritten, by the names that messages call it.
        foreign: gives the name of an entry of an existing folder that `force` must not destroy, or None.

    >>> Output(path=Path("features.parquet"), kind="file", inputs={"bundle": Path("my-sae")}).check()
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
        path = self.path
        if str(path) == "-":
            raise ValueError("the output - would be standard output, which cannot be written to; name a path")
        self._refuse_inputs()
        if self.kind == "file" and path.is_dir():
            raise FileExistsError(f"{path} is a folder; name a file in it")
        if self.kind == "folder" and path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; name a folder")
        if self.force and self.foreign is not None and path.is_dir() and (name := self.foreign(path)) is not None:
            raise FileExistsError(f"{path} holds {name}, which would be lost; name another output")
        check_free(path, force=self.force)

    def _refuse_inputs(self) -> None:
        output = self.path.resolve()
        for name, path in self.inputs.items():
            resolved = path.resolve()
            if output in (resolved, *resolved.parents):
                raise ValueError(f"the output {self.path} is or holds the {name} {path}; name another output")
            if resolved in output.parents:
                raise ValueError(f"the output {self.path} would lie inside the {name} {path}; name another output")
