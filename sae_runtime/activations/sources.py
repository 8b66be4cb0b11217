"""Where the documents of a harvest stand: a line of JSON for each document that has rows."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_runtime.activations.documents import Source
from sae_runtime.activations.windows import Window
from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.regular import LARGEST_JSON
from sae_runtime.bundle.typed_json import read_json, to_text

SOURCES = "documents.jsonl"


@dataclass(frozen=True)
class _Line:
    document: int
    file: str
    row: int
    id: Any


@contextmanager
def source_writer(path: Path) -> Iterator[Callable[[Iterable[Window]], None]]:
    """Give a function that takes windows in order and writes their documents. The file appears when the block ends.

    >>> with source_writer(Path("documents.jsonl")) as write:
    ...     write([])
    """
    last = -1
    with new_file(path, force=True) as partial:
        with partial.open("w", encoding="utf-8") as file:

            def write(windows: Iterable[Window]) -> None:
                nonlocal last
                for window in windows:
                    if window.source is not None and window.document > last:
                        last = window.document
                        file.write(to_text({"document": last, **asdict(window.source)}) + "\n")

            yield write


def read_sources(path: Path) -> Iterator[tuple[int, Source]]:
    """The number of each document among those that were read, and its source, in order and one at a time.

    Raises:
        ValueError: a line is not of this form.

    >>> _ = Path("documents.jsonl").write_text('{"document": 7, "file": "a.csv", "row": 3, "id": "x"}')
    >>> list(read_sources(Path("documents.jsonl")))
    [(7, Source(file='a.csv', row=3, id='x'))]
    """
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(iter(lambda: file.readline(LARGEST_JSON), ""), start=1):
            line: _Line = read_json(_Line, text, f"{path}, line {number}")
            yield line.document, Source(line.file, line.row, line.id)
