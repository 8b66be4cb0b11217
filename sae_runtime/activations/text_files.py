"""Records of files of text: plain text, lines of JSON, JSON and tables with commas or tabs.

A reader gives, of every record, where it begins and its content: a text, or the values of fields by name. Rows count
from 0: lines of plain text and of lines of JSON, elements of JSON, and the rows of a table below its header. Blank
lines count. A reader may be given the entry of a record, and then gives this one and those behind it, or all where the
format cannot be entered.
"""

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_runtime.activations.reading import PACKED, STDIN, Entry, Reading, kind, one_of, opened, place
from sae_runtime.bundle.typed_json import read_json

Records = Iterator[tuple[Entry, Any]]
BEGIN = Entry()

_MAGIC = {
    b"PAR1\x15": "Parquet",
    b"ARROW1\0\0": "Arrow",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a numpy array",
    b"%PDF-": "PDF",
}


def texts(path: Path, reading: Reading, entry: Entry = BEGIN) -> Records:
    r"""Plain text: blocks of lines that are not blank, each of these lines, or all of it.

    >>> _ = Path("a.txt").write_text("One.\nStill one.\n\nTwo.")
    >>> list(texts(Path("a.txt"), Reading()))
    [(Entry(row=0, byte=0), 'One.\nStill one.'), (Entry(row=3, byte=17), 'Two.')]
    >>> [text for _, text in texts(Path("a.txt"), Reading(), Entry(3, 17))]
    ['Two.']
    """
    block: list[str] = []
    begin, size = BEGIN, 0
    for at, line in _lines(path, reading, entry):
        if reading.document == "file" or line.strip():
            begin = begin if block else at
            block.append(line)
            size += len(line)
            if size > reading.longest:
                raise ValueError(f"{place(path, at.row)}: the document has more than {reading.longest:,} characters")
        if block and (reading.document == "line" or not line.strip() and reading.document != "file"):
            yield begin, "".join(block).removesuffix("\n")
            block, size = [], 0
    if block:
        yield begin, "".join(block) if reading.document == "file" else "".join(block).removesuffix("\n")


def json_lines(path: Path, reading: Reading, entry: Entry = BEGIN) -> Records:
    r"""A JSON value a line.

    >>> _ = Path("a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}')
    >>> list(json_lines(Path("a.jsonl"), Reading()))
    [(Entry(row=0, byte=0), {'text': 'one'}), (Entry(row=2, byte=17), {'text': 'two'})]
    """
    for at, line in _lines(path, reading, entry):
        if line.strip():
            yield at, read_json(Any, line, place(path, at.row), foreign=True)


def json_file(path: Path, reading: Reading, entry: Entry = BEGIN) -> Records:
    """JSON: a list of objects or texts, an object of equal lists, an object with one list of objects, or lines.

    >>> _ = Path("a.json").write_text('{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}')
    >>> [record for _, record in json_file(Path("a.json"), Reading())]
    [{'text': 'one'}, {'text': 'two'}]
    """
    filled = (line for _, line in _lines(path, reading) if line.strip())
    if _is_object(next(filled, "")) and next(filled, None) is not None:
        for at, record in json_lines(path, reading):
            yield Entry(at.row, None), record
        return
    for _, text in texts(path, replace(reading, document="file")):  # none if the file is empty
        if text.strip():
            value = read_json(Any, text, str(path), foreign=True)
            for row, element in enumerate(_elements(path, value, reading)):
                yield Entry(row, None), element


def separated(path: Path, reading: Reading, entry: Entry = BEGIN) -> Records:
    r"""A table whose first row names its columns, with tabs in a .tsv file and commas in others.

    >>> _ = Path("a.csv").write_text('id,text\n1,"one, two"')
    >>> list(separated(Path("a.csv"), Reading()))
    [(Entry(row=0, byte=None), {'id': '1', 'text': 'one, two'})]
    """
    csv.field_size_limit(max(csv.field_size_limit(), reading.longest))  # one number for the whole process
    delimiter = "\t" if kind(path) == ".tsv" else ","
    lines = (line for _, line in _lines(path, reading, as_they_end=True))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    number, header = 0, list[str]()
    try:
        for row in rows:
            if not header:
                header = row
                for field in reading.fields if header else ():
                    one_of(path, field, header)
                continue
            if row and len(row) != len(header):
                raise csv.Error(f"it has {len(row)} fields, the header {len(header)}; quote its fields")
            if delimiter == "\t" and _is_rows(row):
                raise csv.Error("its quotes hold lines that are rows themselves; double the quotes that are text")
            if row:
                yield Entry(number, None), dict(zip(header, row, strict=True))
            number += 1
    except csv.Error as error:
        raise ValueError(f"{place(path, number)}: {error}") from error


def _is_rows(row: list[str]) -> bool:
    """Whether each line of a row has its number of fields, as where quotes are text and not around a field."""
    lines = "\t".join(row).splitlines()
    return len(lines) > 1 < len(row) and all(line.count("\t") == len(row) - 1 for line in lines)


def _is_object(line: str) -> bool:
    try:
        return isinstance(read_json(Any, line, "line", foreign=True), dict)
    except ValueError:
        return False


def _elements(path: Path, value: Any, reading: Reading) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds neither a list nor an object; save a list of objects")
    content = value.get(reading.content)
    if isinstance(content, list) and (reading.ids_field is None or isinstance(next(iter(content), []), list)):
        columns = {field: value[field] for field in reading.fields if field in value}
        sizes = {field: len(column) if isinstance(column, list) else None for field, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{path}: the fields {', '.join(map(repr, sizes))} are not lists of one length")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    lists = [v for v in value.values() if isinstance(v, list)]
    # Texts are elements only where nothing else is: a list of names beside other values may be of columns.
    alone = len(value) == len(lists) == 1 and all(isinstance(e, str) for e in lists[0])
    rows = lists if alone else [v for v in lists if v and all(isinstance(e, dict) for e in v)]
    return rows[0] if reading.content not in value and len(rows) == 1 else [value]


def _lines(
    path: Path, reading: Reading, entry: Entry = BEGIN, *, as_they_end: bool = False
) -> Iterator[tuple[Entry, str]]:
    """The lines of a file in UTF-8, each with its entry; a byte order mark is dropped.

    Args:
        path: the file.
        reading: its bounds.
        entry: of the first line; without a byte the file is read from its beginning.
        as_they_end: keep the ends of lines; else each is a line feed.
    """
    by_bytes = path != STDIN and path.suffix.lower() not in PACKED
    number, byte = (entry.row, entry.byte or 0) if by_bytes else (0, 0)
    with opened(path, reading) as stream:
        start = stream.peek(8)
        binary = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        if binary is not None:
            raise ValueError(f"{path} holds {binary}, not text; give it the suffix of its format")
        if byte == 0 and start.startswith(codecs.BOM_UTF8):
            byte = len(codecs.BOM_UTF8)
            stream.read(byte)
        elif byte:
            stream.seek(byte)
        with io.TextIOWrapper(stream, encoding="utf-8", newline="") as file:
            try:
                while line := file.readline(reading.longest + 1):
                    if len(line) > reading.longest:
                        raise ValueError(
                            f"{path}: line {number + 1} has more than {reading.longest:,} characters; part it"
                        )
                    if "\0" in line:
                        raise ValueError(
                            f"{path}: line {number + 1} holds NUL, as binary data does, not text; remove it"
                        )
                    at = Entry(number, byte if by_bytes else None)
                    byte += len(line) if line.isascii() else len(line.encode())
                    number += 1
                    if not as_they_end and line.endswith("\r", 0, -1 if line.endswith("\n") else None):
                        line = line.rstrip("\r\n") + "\n"
                    yield at, line
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
