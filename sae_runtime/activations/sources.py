"""Where the documents of a harvest stand: a line of JSON for each document that has rows."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.activations.windows import Window
from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.typed_json import read_json

SOURCES = "documents.jsonl"


@dataclass(frozen=True)
class Source:
    """The number of a document among those that were read, and its file, its row there and its id, as `Document`."""

    document: int
    file: str
    row: int
    id: Any = None


@contextmanager
def source_writer(path: Path) -> Iterator[Callable[[Iterable[Window]], None]]:
    """Give a function that takes windows in order and writes their documents. The file appears when the block ends.

    >>> with source_writer(Path("documents.jsonl")) as write:
    ...     write([])
    """
    last = -1
    with new_file(path, force=True) as partial, partial.open("w", encoding="utf-8") as file:

        def write(windows: Iterable[Window]) -> None:
            nonlocal last
            for window in windows:
                if window.source is not None and window.document > last:
                    last = window.document
                    where = {"file": str(window.source.file), "row": window.source.row, "id": window.source.id}
                    file.write(json.dumps({"document": last, **where}) + "\n")

        yield write
        file.flush()


def read_sources(path: Path) -> Iterator[Source]:
    """The documents, in order, one at a time.

    Raises:
        ValueError: a line is not of this form.

    >>> _ = Path("documents.jsonl").write_text('{"document": 0, "file": "a.csv", "row": 3, "id": "x"}')
    >>> list(read_sources(Path("documents.jsonl")))
    [Source(document=0, file='a.csv', row=3, id='x')]
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield read_json(Source, line, f"{path}, line {number}")
