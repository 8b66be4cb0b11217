"""Documents from files of any known format, one at a time: texts or token ids, each with its source."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations import tables, text_files
from sae_runtime.activations.listing import visible_files
from sae_runtime.activations.reading import (
    LINES,
    PACKED,
    STDIN,
    TEXTS,
    Entry,
    Reading,
    kind,
    one_of,
    place,
    standard_input,
    unpacks_to_too_much,
)
from sae_runtime.activations.text_files import BEGIN, Records
from sae_runtime.bundle.typed_json import shown

_Reader = Callable[[Path, Reading, Entry], Records]
_TEXTS: dict[str, _Reader] = {
    **dict.fromkeys(TEXTS, text_files.texts),
    **dict.fromkeys(LINES, text_files.json_lines),
    ".json": text_files.json_file,
    ".csv": text_files.separated,
    ".tsv": text_files.separated,
}
_TABLES: dict[str, _Reader] = {".parquet": tables.parquet, ".arrow": tables.arrow, ".feather": tables.arrow}
FORMATS = (
    f"{', '.join(_TEXTS)}, each also with {' or '.join(PACKED)} after it, {', '.join(_TABLES)}, a folder of files of "
    "one of these, a folder of datasets.save_to_disk, or - for standard input"
)
_MOST_IDS = 1 << 31
_JSON_LIST = re.compile(rb'\[\s*[{"]')


@dataclass(frozen=True, slots=True)
class Source:
    """Where a document stands.

    Attributes:
        file: the path of its file, as it was given.
        row: its number in the file, from 0: a line of text or of lines of JSON, a row of a table, an element of a list.
            Empty ones count.
        id: the value of the field that names documents; None where there is none.
    """

    file: str
    row: int
    id: Any = None

    def __str__(self) -> str:
        return place(Path(self.file), self.row)


class Place(NamedTuple):
    """Where a document begins, so that it can be read without those before it.

    Attributes:
        file: number of its file, or folder of the datasets library, among those that are read.
        entry: into it.
    """

    file: int = 0
    entry: Entry = BEGIN


@dataclass(frozen=True, eq=False)
class Document:
    """A text or the ids of its tokens [n], and where it stands.

    Attributes:
        content: the text or the ids.
        source: where it stands, for people.
        place: where it stands, for `documents`.
        columns: values of the fields that are kept.
    """

    content: str | NDArray[np.int32]
    source: Source
    place: Place = Place()
    columns: tuple[Any, ...] = ()

    def __len__(self) -> int:
        """Number of characters, or of token ids."""
        return len(self.content)


def documents(
    paths: Sequence[Path], reading: Reading | None = None, *, start: Place | None = None
) -> Iterator[Document]:
    r"""The documents of files, in order and without blank ones. A file is read piece by piece as they are used.

    The suffix of a file tells its format, and `FORMATS` names those that are known. Plain text is UTF-8; a byte order
    mark is dropped. A document that only has spaces, control characters and characters of no width is blank.

    Args:
        paths: files, folders, or `-` for standard input, which is lines of JSON if it begins with `{`, else plain text.
        reading: where the documents are in the files; None means paragraphs, and the field "text".
        start: the place of the first document to give. What stands before it is not read, where the format allows.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is of no known format, or a folder holds files of several. While documents are read: a file
            is damaged, or of another format than its name says; it lacks a field; the value of a field is not of the
            kind that is asked for; a document is too long, or a file unpacks to too much.
        ImportError: while documents are read: a Parquet, Arrow or .zst file needs pyarrow, which is not installed.

    >>> _ = Path("notes.txt").write_text("One.\nStill one.\n\nTwo.")
    >>> [(document.content, document.source.row) for document in documents([Path("notes.txt")])]
    [('One.\nStill one.', 0), ('Two.', 3)]
    """
    reading, begin = reading or Reading(), start or Place()
    sources = list(enumerate(source for path in paths for source in _sources(path)))[begin.file :]
    return (
        document
        for number, (path, reader) in sources
        for document in _documents_of(number, path, reader, reading, begin.entry if number == begin.file else BEGIN)
    )


def files_of(path: Path) -> list[Path]:
    """The files that are read for a path, in order; raises as `documents` does before it reads.

    >>> _ = Path("notes.txt").write_text("One.")
    >>> files_of(Path("notes.txt"))
    [PosixPath('notes.txt')]
    """
    read = _sources(path)
    return [file for path, reader in read for file in (tables.dataset_files(path) if _is_dataset(path) else [path])]


def _sources(path: Path) -> list[tuple[Path, _Reader]]:
    """What is read for a path, with its readers; nothing is read yet."""
    if path == STDIN:
        return [(path, _standard_input)]
    if not path.exists():
        raise FileNotFoundError(f"the text file {path} does not exist; check its path")
    if _is_dataset(path):
        tables.dataset_files(path)
        return [(path, tables.saved_dataset)]
    if path.is_dir():
        files = visible_files(path)
        kinds = sorted({f"{file.name}/" if file.is_dir() else kind(file) or file.name for file in files})
        if len(kinds) != 1 or kinds[0].endswith("/"):
            held = f"holds {', '.join(kinds[:20])}" if kinds else "is empty"
            raise ValueError(f"the folder {path} {held}, expected files of one format; name its text files one by one")
        return [source for file in files for source in _sources(file)]
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give it as standard input with -")
    packed = path.suffix.lower() in PACKED
    reader = _TEXTS.get(kind(path)) or (None if packed else _TABLES.get(kind(path)))
    if reader is None:
        ending = kind(path) + path.suffix.lower() * packed or "no suffix"
        raise ValueError(f"{path} has {ending}, which is no known format of documents; rename it, or give {FORMATS}")
    return [(path, reader)]


def _is_dataset(path: Path) -> bool:
    return (path / tables.STATE).is_file() or (path / tables.SPLITS).is_file()


def _standard_input(path: Path, reading: Reading, entry: Entry) -> Records:
    content = standard_input(reading).removeprefix(b"\xef\xbb\xbf").lstrip()
    if _JSON_LIST.match(content):
        raise ValueError("standard input is a list of JSON, not lines of it; name its file, or part it by jq -c '.[]'")
    return (text_files.json_lines if content.startswith(b"{") else text_files.texts)(path, reading, entry)


def _documents_of(number: int, path: Path, reader: _Reader, reading: Reading, entry: Entry) -> Iterator[Document]:
    left = reading.most_bytes(sum(file.stat().st_size for file in files_of(path) if file != STDIN))
    for at, record in reader(path, reading, entry):
        if at.row < entry.row:
            continue
        try:
            content, name = _content(record, reading)
        except ValueError as error:
            raise ValueError(f"{place(path, at.row)}: {error}") from error
        left -= len(content)
        if left < 0 and path != STDIN:
            raise unpacks_to_too_much(path)
        if not _is_blank(content):
            columns = tuple(record[column] for column in reading.columns) if reading.columns else ()
            yield Document(content, Source(str(path), at.row, name), Place(number, at), columns)


def _content(record: Any, reading: Reading) -> tuple[str | NDArray[np.int32], str | int | None]:
    """The text or the ids of a record, and its name."""
    if isinstance(record, str):
        if reading.ids_field:
            raise ValueError(f"it is plain text, which has no field {reading.ids_field!r}; give a format with fields")
        if reading.columns:
            raise ValueError(f"it is plain text, which has no column {reading.columns[0]!r}; give a format with fields")
        return _text(record, "the text", reading), None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with the field {reading.content!r}, got {shown(record)}")
    for field in reading.fields:
        one_of("it", field, list(record))
    name = record[reading.id_field] if reading.id_field else None
    if not (name is None or isinstance(name, str) or type(name) is int):
        raise ValueError(f"the field {reading.id_field!r} must be text or a whole number, got {shown(name)}")
    value, called = record[reading.content], f"the field {reading.content!r}"
    return _ids(value, called) if reading.ids_field else _text(value, called, reading), name


def _text(value: Any, called: str, reading: Reading) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{called} must be text, got {'null' if value is None else shown(value)}")
    if len(value) > reading.longest:
        raise ValueError(f"{called} has more than {reading.longest:,} characters; part it")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair, which no tokenizer accepts
        raise ValueError(f"{called} holds half a character ({error.reason}); repair it") from error
    return value


def _ids(value: Any, called: str) -> NDArray[np.int32]:
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise ValueError(f"{called} must be a list of token ids, got {shown(value)}")
    if value and not 0 <= min(value) <= max(value) < _MOST_IDS:
        raise ValueError(f"{called} has token ids from {min(value)} to {max(value)}, expected 0 or more")
    return np.array(value, np.int32)


def _is_blank(content: str | NDArray[np.int32]) -> bool:
    if isinstance(content, str):
        return all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in content)
    return len(content) == 0
