"""Documents from text files: paragraphs, whole files or lines of JSON, one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_runtime.bundle.typed_json import read_json

DOCUMENTS = ("paragraph", "file")


@dataclass(frozen=True)
class _Record:
    """A line of a .jsonl file; other fields are ignored."""

    text: str


def documents(paths: Sequence[Path], document: str = "paragraph") -> Iterator[str]:
    r"""The documents of text files, in order and without blank ones. A file is read piece by piece as they are used.

    Each line of a `.jsonl` file is a JSON object, whose field "text" is a document. Any other file is UTF-8 text. A
    document is a block of non-blank lines ("paragraph") or the whole file ("file"). A byte order mark is dropped.

    Args:
        paths: the files.
        document: "paragraph" or "file".

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: `document` is unknown, or a path is a folder. While documents are read: a file is not UTF-8, or a
            line of a .jsonl file is not an object with a string "text".

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "notes.txt")
    ...     _ = file.write_text("One.\nStill one.\n\nTwo.")
    ...     list(documents([file]))
    ['One.\nStill one.', 'Two.']
    """
    if document not in DOCUMENTS:
        raise ValueError(f"document must be one of {', '.join(DOCUMENTS)}, got {document!r}")
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"the text file {path} does not exist; check its path")
        if not path.is_file():
            raise ValueError(f"{path} is not a file; name the text files inside one by one")
    return (text for path in paths for text in _documents_of(path, document) if text.strip())


def _documents_of(path: Path, document: str) -> Iterator[str]:
    if path.suffix.lower() == ".jsonl":
        return _json_texts(path)
    return _paragraphs(path) if document == "paragraph" else iter(["".join(_lines(path))])


def _paragraphs(path: Path) -> Iterator[str]:
    block: list[str] = []
    for line in _lines(path):
        if line.strip():
            block.append(line)
        elif block:
            yield "".join(block).removesuffix("\n")
            block = []
    if block:
        yield "".join(block).removesuffix("\n")


def _json_texts(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            record: _Record = read_json(_Record, line, where, more=True)
            try:
                record.text.encode()
            except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair, which no tokenizer accepts
                raise ValueError(f"{where}: the text holds half a character ({error.reason}); repair it") from error
            yield record.text


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
