"""Documents out of text files: paragraphs, whole files or lines of JSON, one at a time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

DOCUMENTS = ("paragraph", "file")


def documents(paths: Sequence[Path], document: str = "paragraph") -> Iterator[str]:
    r"""The documents of text files, in order; empty documents are dropped, and files are read as documents are taken.

    In a `.jsonl` file each line is a document: the field "text" of a JSON object. Any other file is UTF-8 text. With
    document "paragraph" it is a block of non-blank lines, with document "file" it is the whole file. A byte order
    mark is dropped.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "notes.txt")
    ...     _ = file.write_text("One.\nStill one.\n\nTwo.")
    ...     list(documents([file]))
    ['One.\nStill one.', 'Two.']

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: `document` is unknown, a path is a folder or, while reading, a file is not UTF-8, or a line of JSON
            is not an object with a string "text".
    """
    if document not in DOCUMENTS:
        raise ValueError(f"document must be one of {', '.join(DOCUMENTS)}, got {document!r}")
    for path in paths:
        _check_file(path)
    return (text for path in paths for text in _of_file(path, document) if not _is_blank(text))


def _check_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"the text file {path} does not exist; check its path")
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name the text files inside one by one")


def _of_file(path: Path, document: str) -> Iterator[str]:
    if path.suffix.lower() == ".jsonl":
        return _json_texts(path)
    return _paragraphs(path) if document == "paragraph" else iter(["".join(_lines(path))])


def _paragraphs(path: Path) -> Iterator[str]:
    block: list[str] = []
    for line in _lines(path):
        if not _is_blank(line):
            block.append(line)
        elif block:
            yield "".join(block).removesuffix("\n")
            block = []
    if block:
        yield "".join(block).removesuffix("\n")


def _json_texts(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not _is_blank(line):
            yield _json_text(line, f"{path}, line {number}")


def _json_text(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); expected one object a line") from error
    if not isinstance(record, dict) or "text" not in record:
        raise ValueError(f'{where}: no field "text"; expected one JSON object a line with its text there')
    text = record["text"]
    if not isinstance(text, str):
        raise ValueError(f'{where}: the field "text" must be a string, got {type(text).__name__}; convert it')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair, which no tokenizer accepts
        raise ValueError(f'{where}: the field "text" holds half a character ({error.reason}); repair it') from error
    return text


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error


def _is_blank(text: str) -> bool:
    return not text or text.isspace()
