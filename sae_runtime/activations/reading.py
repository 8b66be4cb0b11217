"""How documents are read: the settings of all formats, and the bytes of files, which may be packed, within bounds."""

import gzip
import io
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.typed_json import shown

DOCUMENTS = ("paragraph", "file", "line")
TEXTS = (".txt", ".text", ".md", ".markdown", ".rst")
LINES = (".jsonl", ".ndjson", ".jsonlines")
PACKED = (".gz", ".zst")
STDIN = Path("-")
_piped: "WeakKeyDictionary[Any, bytes]" = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where the documents are in files, and bounds against files that would fill the memory.

    Attributes:
        document: "paragraph", "file" or "line": what a document is in plain text.
        text_field: the field or column that holds the text.
        ids_field: the field or column that holds a document's token ids, a list of whole numbers, instead of its text.
        id_field: the field or column that names a document, a text or a whole number.
        columns: other fields or columns that are kept with a document.
        longest: the most characters of a document, and of a line.
        unpacked: how many times its size a file may unpack to.
        small: what a file may always unpack to, in bytes.

    >>> Reading(ids_field="input_ids", id_field="url").fields
    ('input_ids', 'url')

    Raises:
        ValueError: `document` is unknown, or the name of a field is empty.
    """

    document: str = "paragraph"
    text_field: str = "text"
    ids_field: str | None = None
    id_field: str | None = None
    columns: tuple[str, ...] = ()
    longest: int = 1 << 30
    unpacked: int = 200
    small: int = 1 << 26

    def __post_init__(self) -> None:
        if self.document not in DOCUMENTS:
            raise ValueError(f"document must be one of {', '.join(DOCUMENTS)}, got {self.document!r}")
        if "" in (self.text_field, self.ids_field, self.id_field, *self.columns):
            raise ValueError("the name of a field is empty; name a field or column of the file")

    @property
    def content(self) -> str:
        """The field that holds what a document is made of."""
        return self.ids_field or self.text_field

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that are read."""
        named = (self.content, self.id_field, *self.columns)
        return tuple(dict.fromkeys(field for field in named if field is not None))

    def most_bytes(self, size: int) -> int:
        """What a file of `size` bytes may unpack to."""
        return max(self.small, self.unpacked * size)


class Entry(NamedTuple):
    """Where a file is entered, or a record begins.

    Attributes:
        row: its number in the file.
        byte: where it begins; None: its file cannot be entered by bytes.
    """

    row: int = 0
    byte: int | None = 0


def opened(path: Path, reading: Reading) -> io.BufferedReader:
    """The bytes of a file, unpacked if its name ends in .gz or .zst, or of standard input.

    Raises:
        ImportError: a .zst file needs pyarrow, which is not installed.
        ValueError: while it is read: the file is damaged, or it unpacks to more than the bound.

    >>> _ = Path("a.txt.gz").write_bytes(gzip.compress(b"one"))
    >>> with opened(Path("a.txt.gz"), Reading()) as stream:
    ...     stream.read()
    b'one'
    """
    suffix = path.suffix.lower()
    if path == STDIN:
        return io.BufferedReader(io.BytesIO(standard_input(reading)))
    if suffix not in PACKED:
        return path.open("rb")
    if suffix == ".gz":
        packed: Any = gzip.open(path)
    else:
        require("extract")
        import pyarrow

        packed = pyarrow.input_stream(str(path), compression="zstd")
    return io.BufferedReader(_Unpacked(path, packed, reading))


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, up to the bound."""

    def __init__(self, path: Path, packed: Any, reading: Reading) -> None:
        self._path, self._packed = path, packed
        self._left = reading.most_bytes(path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._packed.read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{self._path} is not a whole {self._path.suffix} file ({error}); get it again, or unpack it yourself"
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise unpacks_to_too_much(self._path)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._packed.close()
        super().close()


def standard_input(reading: Reading) -> bytes:
    """All of standard input. It is kept, so that it can be read again.

    Raises:
        ValueError: there is none, it is longer than a document may be, or several processes would share it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("- is standard input, of which each process of torchrun would get a part; name a file")
    if sys.stdin is None:
        raise ValueError("- is standard input, which is closed; name a file")
    if sys.stdin not in _piped:
        content = sys.stdin.buffer.read(reading.longest + 1)
        if len(content) > reading.longest:
            raise ValueError(f"standard input holds more than {reading.longest:,} bytes; write it to files")
        _piped[sys.stdin] = content
    return _piped[sys.stdin]


def unpacks_to_too_much(path: Path) -> ValueError:
    """The error that a file unpacks to more than the bound."""
    return ValueError(f"{path} unpacks to far more than its size, as files do that fill a disk; unpack it yourself")


def place(path: Path, row: int) -> str:
    """The row of a file, in messages. Lines count from 1 there, as in editors; other rows count from 0.

    >>> place(Path("a.jsonl.gz"), 2), place(Path("a.csv"), 2)
    ('a.jsonl.gz, line 3', 'a.csv, row 2')
    """
    return f"{path}, line {row + 1}" if _has_lines(path) else f"{path}, row {row}"


@cache
def _has_lines(path: Path) -> bool:
    return path == STDIN or kind(path) in (*TEXTS, *LINES)


def kind(path: Path) -> str:
    """The suffix that names the format of a file, in small letters, without that of its packing.

    >>> kind(Path("a.b.JSONL.gz")), kind(Path("notes"))
    ('.jsonl', '')
    """
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def one_of(what: Path | str, field: str, names: Sequence[str]) -> None:
    """Refuse a file or a record without a field, or with two of its name.

    Raises:
        ValueError: the field is missing or not alone; the message names the fields that there are.

    >>> one_of(Path("a.csv"), "text", ["id", "body"])
    Traceback (most recent call last):
    ValueError: a.csv has no field 'text'; it has 'id', 'body'; name one of these
    """
    count = list(names).count(field)
    if count == 0:
        known = ", ".join(map(shown, names[:20])) or "none"
        raise ValueError(f"{what} has no field {field!r}; it has {known}; name one of these")
    if count > 1:
        raise ValueError(f"{what} has {count} fields of the name {field!r}; rename all but one")
