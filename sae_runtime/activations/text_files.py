"""Records of files of text: plain text, lines of JSON, JSON and tables with commas or tabs.

A reader gives, of every record, its row in the file and its content: a text, or the values of fields by name. Rows
count from 0: lines of plain text and of lines of JSON, elements of JSON, and the rows of a table below its header.
Blank lines count.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_runtime.activations.reading import Reading, kind, one_of, opened, place
from sae_runtime.bundle.typed_json import read_json

Records = Iterator[tuple[int, Any]]

_MAGIC = {
    b"PAR1\x15": "Parquet",
    b"ARROW1\0\0": "Arrow",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a numpy array",
    b"%PDF-": "PDF",
}


def texts(path: Path, reading: Reading) -> Records:
    r"""Plain text: blocks of lines that are not blank, each of these lines, or all of it.

    >>> _ = Path("a.txt").write_text("One.\nStill one.\n\nTwo.")
    >>> list(texts(Path("a.txt"), Reading()))
    [(0, 'One.\nStill one.'), (3, 'Two.')]
    """
    block: list[str] = []
    begin = size = 0
    for number, line in enumerate(_lines(path, reading)):
        if reading.document == "file" or line.strip():
            begin = begin if block else number
            block.append(line)
            size += len(line)
            if size > reading.longest:
                raise ValueError(f"{place(path, number)}: the document has more than {reading.longest:,} characters")
        if block and (reading.document == "line" or not line.strip() and reading.document != "file"):
            yield begin, "".join(block).removesuffix("\n")
            block, size = [], 0
    if block:
        yield begin, "".join(block) if reading.document == "file" else "".join(block).removesuffix("\n")


def json_lines(path: Path, reading: Reading) -> Records:
    r"""A JSON value a line.

    >>> _ = Path("a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}')
    >>> list(json_lines(Path("a.jsonl"), Reading()))
    [(0, {'text': 'one'}), (2, {'text': 'two'})]
    """
    for number, line in enumerate(_lines(path, reading)):
        if line.strip():
            yield number, read_json(Any, line, place(path, number), foreign=True)


def json_file(path: Path, reading: Reading) -> Records:
    """JSON: a list of objects or texts, an object of equal lists, an object with one list of objects, or lines.

    >>> _ = Path("a.json").write_text('{"version": 1, "data": [{"text": "one"}, {"text": "two"}]}')
    >>> list(json_file(Path("a.json"), Reading()))
    [(0, {'text': 'one'}), (1, {'text': 'two'})]
    """
    filled = (line for line in _lines(path, reading) if line.strip())
    if _is_object(next(filled, "")) and next(filled, None) is not None:
        yield from json_lines(path, reading)
        return
    for _, text in texts(path, replace(reading, document="file")):  # none if the file is empty
        if text.strip():
            value = read_json(Any, text, str(path), foreign=True)
            yield from enumerate(_elements(path, value, reading))


def separated(path: Path, reading: Reading) -> Records:
    r"""A table whose first row names its columns, with tabs in a .tsv file and commas in others.

    >>> _ = Path("a.csv").write_text('id,text\n1,"one, two"')
    >>> list(separated(Path("a.csv"), Reading()))
    [(0, {'id': '1', 'text': 'one, two'})]
    """
    csv.field_size_limit(max(csv.field_size_limit(), reading.longest))  # one number for the whole process
    delimiter = "\t" if kind(path) == ".tsv" else ","
    rows = csv.reader(_lines(path, reading, newline=""), delimiter=delimiter, strict=True)
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
                yield number, dict(zip(header, row, strict=True))
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


def _lines(path: Path, reading: Reading, newline: str | None = None) -> Iterator[str]:
    """The lines of a file in UTF-8, with their ends; a byte order mark is dropped."""
    with opened(path, reading) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as file:
        start = stream.peek(8)
        binary = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
        if binary is not None:
            raise ValueError(f"{path} holds {binary}, not text; give it the suffix of its format")
        number = 0
        try:
            while line := file.readline(reading.longest + 1):
                if len(line) > reading.longest:
                    raise ValueError(f"{path}: line {number + 1} has more than {reading.longest:,} characters; part it")
                if "\0" in line:
                    raise ValueError(f"{path}: line {number + 1} holds NUL, as binary data does, not text; remove it")
                yield line
                number += 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it to UTF-8") from error
