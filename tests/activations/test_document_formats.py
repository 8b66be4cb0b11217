"""Documents of text formats: the same four documents from all of them, odd content, and refusals by name."""

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from sae_runtime.activations.documents import documents, files_of
from sae_runtime.activations.reading import Reading

FOUR = (
    'One, with "quotes" and \ttabs.',
    "Two has\nlines and\u2028separators\x85.",
    "Drei: Straße, 漢字, 😀.",
    "x" * 300,
)
IDS = (11, 22, 33, 44)
ROWS = (0, 2, 3, 4)  # of the four; row 1 is blank
RECORDS = [{"n": 1, "text": text, "key": key} for text, key in zip((FOUR[0], "", *FOUR[1:]), (11, 0, 22, 33, 44))]  # noqa: B905


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(content, asbytes=True))


def texts(path: Path, document: str = "paragraph") -> list[Any]:
    return [one.content for one in documents([path], Reading(document=document))]


def separated(delimiter: str) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ("n", "text", "key"), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return file.getvalue()


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
COLUMNS = {name: [record[name] for record in RECORDS] for name in ("key", "n", "text")}
FORMATS = {
    "a.jsonl": LINES,
    "a.ndjson": LINES.replace("\n", "\r\n"),
    "a.JSONLINES": LINES.rstrip("\n"),
    "b.jsonl": "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS),
    "lines.json": "\ufeff" + LINES,
    "nan.jsonl": LINES.replace('"n": 1', f'"score": NaN, "n": -Infinity, "n": 1e999, "hash": {"9" * 50}'),
    "nan.json": json.dumps([record | {"score": float("nan")} for record in RECORDS]),
    "array.json": json.dumps(RECORDS, indent=2),
    "columns.json": json.dumps(COLUMNS),
    "field.json": json.dumps({"version": "1", "data": RECORDS}, indent=1, ensure_ascii=False),
    "a.csv": separated(","),
    "bom.csv": "\ufeff" + separated(","),
    "a.tsv": separated("\t"),
}


@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents_rows_and_ids(tmp_path: Path, name: str, pack: str) -> None:
    packing: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
    path = write(tmp_path / (name + pack), packing[pack](FORMATS[name].encode()))
    found = list(documents([path], Reading(id_field="key")))
    assert [one.content for one in found] == list(FOUR)
    keys: Sequence[Any] = [str(key) for key in IDS] if "sv" in name else IDS
    expected = [(str(path), row, key) for row, key in zip(ROWS, keys, strict=True)]
    assert [(one.source.file, one.source.row, one.source.id) for one in found] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "columns.json", "lines.json"])
def test_token_ids_are_read_instead_of_text(tmp_path: Path, name: str) -> None:
    rows = [[5, 6], [], [7]]
    content = {
        "a.jsonl": "".join(json.dumps({"ids": row}) + "\n" for row in rows),
        "lines.json": "".join(json.dumps({"ids": row}) + "\n" for row in rows),
        "array.json": json.dumps([{"ids": row} for row in rows]),
        "columns.json": json.dumps({"ids": rows}),
    }
    found = list(documents([write(tmp_path / name, content[name])], Reading(ids_field="ids")))
    for one, expected in zip(found, ([5, 6], [7]), strict=True):
        assert isinstance(one.content, np.ndarray) and one.content.dtype == np.int32 and len(one) == len(expected)
        assert one.content.tolist() == expected
    assert [one.source.row for one in found] == [0, 2]


def test_json_of_texts_and_of_one_object(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.json", '["one", " ", "two"]')) == ["one", "two"]
    assert texts(write(tmp_path / "b.json", '{"text": "one"}')) == ["one"]
    assert texts(write(tmp_path / "c.json", '{\n "text": "one"\n}')) == ["one"]
    assert texts(write(tmp_path / "d.json", "")) == texts(write(tmp_path / "e.json", "[]")) == []
    one = documents([write(tmp_path / "f.json", '{"ids": [1, 2]}')], Reading(ids_field="ids"))
    assert [document.content.tolist() for document in one] == [[1, 2]]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.TEXT", "a.markdown"])
def test_paragraphs_are_blocks_of_nonblank_lines(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\n \t\n one\ntwo \n\n\n  \nthree\n\u3000\nfour")
    found = list(documents([path]))
    assert [one.content for one in found] == [" one\ntwo ", "three", "four"]
    assert [one.source.row for one in found] == [2, 7, 9]


def test_line_ends_of_windows_and_a_byte_order_mark_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert texts(path) == ["one\ntwo", "three"]


def test_document_file_gives_whole_files_in_the_order_of_the_paths(tmp_path: Path) -> None:
    first = write(tmp_path / "z.txt", "one\n\ntwo\n")
    second = write(tmp_path / "a.txt", "three")
    blank = write(tmp_path / "b.txt", " \n\n")
    empty = write(tmp_path / "c.txt", "")
    found = documents([first, blank, empty, second], Reading(document="file"))
    assert [one.content for one in found] == ["one\n\ntwo\n", "three"]


@pytest.mark.parametrize("blank", ["", " \n", "\u200b", "\ufeff \u2060", "\x00", "\u00ad", "\u3000\x1f"])
def test_what_no_one_can_see_is_blank_and_counts_as_a_row(tmp_path: Path, blank: str) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"text": blank}) + "\n\n" + json.dumps({"text": "a\u200b"}))
    assert [(one.content, one.source.row) for one in documents([path])] == [("a\u200b", 2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 3 is not readable JSON \(.*\)$"),
        ("[" * 100_000, r"line 3 is not readable JSON \(.*\)$"),
        ('{"body": "a", "id": 3}', "line 3: it has no field 'text'; it has 'body', 'id'; name one of these$"),
        ('["text"]', r"line 3: expected an object with the field 'text', got \['text'\]$"),
        ("7", "line 3: expected an object with the field 'text', got 7$"),
        ('{"text": 5}', "line 3: the field 'text' must be text, got 5$"),
        ('{"text": null}', "line 3: the field 'text' must be text, got null$"),
        ('{"text": [1, 2]}', r"line 3: the field 'text' must be text, got \[1, 2\]$"),
        ('{"text": {"text": "a"}}', "line 3: the field 'text' must be text, got {'text': 'a'}$"),
        (r'{"text": "\ud800"}', r"line 3: the field 'text' holds half a character \(.*\); repair it$"),
    ],
)
def test_bad_json_is_refused_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
    found = documents([path])
    assert next(found).content == "fine"
    with pytest.raises(ValueError, match="a.jsonl, " + message):
        next(found)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ('"1 2"', "must be a list of token ids, got '1 2'"),
        ("[1, 2.0]", "must be a list of token ids"),
        ("[true]", "must be a list of token ids"),
        ("[[1]]", "must be a list of token ids"),
        ("null", "must be a list of token ids, got None"),
        ("[3, -1]", "has token ids from -1 to 3, expected 0 or more"),
        ("[2147483648]", "has token ids from 2147483648"),
    ],
)
def test_token_ids_of_another_kind_are_refused(tmp_path: Path, ids: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"ids": {ids}}}')
    with pytest.raises(ValueError, match="a.jsonl, line 1: the field 'ids' " + message):
        list(documents([path], Reading(ids_field="ids")))


@pytest.mark.parametrize(
    ("value", "fine"), [('"a"', True), ("7", True), ("null", True), ("1.5", False), ("[1]", False)]
)
def test_a_document_is_named_by_text_or_a_whole_number(tmp_path: Path, value: str, fine: bool) -> None:
    found = documents([write(tmp_path / "a.jsonl", f'{{"text": "a", "key": {value}}}')], Reading(id_field="key"))
    if fine:
        assert next(found).source.id == json.loads(value)
        return
    with pytest.raises(ValueError, match="the field 'key' must be text or a whole number"):
        next(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,body\n1,a\n", "t.csv has no field 'text'; it has 'id', 'body'; name one of these$"),
        ("text,text\na,b\n", "t.csv has 2 fields of the name 'text'; rename all but one$"),
        ("id,text\n1,a\n2,b,c\n", "t.csv, row 1: it has 3 fields, the header 2"),
        ('id,text\n1,"a\n2,b\n', "t.csv, row 0: unexpected end of data"),
        ('id,text\n1,"a"b\n', "t.csv, row 0: .* expected after"),
        (b"id,text\n1,caf\xe9\n", "t.csv is not UTF-8 text"),
    ],
)
def test_tables_that_do_not_hold_together_are_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(documents([write(tmp_path / "t.csv", content)]))


def test_quotes_that_are_text_do_not_join_rows_of_a_file_with_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", 'id\ttext\n1\tfine\n2\t"To be,\n3\tor not\n4\tto be."\n')
    with pytest.raises(ValueError, match="t.tsv, row 1: its quotes hold lines that are rows themselves"):
        list(documents([path]))
    assert texts(write(tmp_path / "u.tsv", 'id\ttext\n1\t"a\tb\nc"\n')) == ["a\tb\nc"]
    assert texts(write(tmp_path / "one.tsv", 'text\n"a\nb"\nc\n')) == ["a\nb", "c"]


def test_blank_rows_of_a_table_count(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "\r\nid,text\r\n1,a\r\n\r\n2,\r\n3,b\r\n")
    assert [(one.content, one.source.row) for one in documents([path])] == [("a", 0), ("b", 3)]
    assert texts(write(tmp_path / "e.csv", "")) == texts(write(tmp_path / "h.csv", "id,text\n")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "holds neither a list nor an object"),
        ('{"text": ["a", "b"], "key": [1]}', "the fields 'text', 'key' are not lists of one length"),
        ('{"text": ["a"], "key": 1}', "the fields 'text', 'key' are not lists of one length"),
        ('{"a": ["x"], "b": ["y"]}', "row 0: it has no field 'text'; it has 'a', 'b'"),
        ('{"rows": [[1]]}', "row 0: it has no field 'text'; it has 'rows'"),
        ('{"columns": ["text", "key"], "data": [["a", 1]]}', "row 0: it has no field 'text'; it has 'columns', 'data'"),
        ('{"name": "x", "languages": ["en", "de"]}', "row 0: it has no field 'text'; it has 'name', 'languages'"),
        ('[{"text": "a", "key": 1}, 3]', "row 1: expected an object with the field 'text', got 3"),
        ('[{"text": "a", "key": 1}', "is not readable JSON"),
        ('{"text": "a",\n', "is not readable JSON"),
    ],
)
def test_ambiguous_or_broken_json_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(documents([write(tmp_path / "a.json", content)], Reading(id_field="key")))


def test_lines_of_plain_text_are_documents_where_they_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\n\n \t\ntwo, \r\nthree")
    found = documents([path], Reading(document="line"))
    assert [(one.content, one.source.row) for one in found] == [("one", 0), ("two, ", 3), ("three", 4)]


@pytest.mark.parametrize("document", ["paragraph", "file", "line"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, name: str, document: str) -> None:
    path = write(tmp_path / name, '{"text": "Stra\u00dfe"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.\w+ is not UTF-8 text \(invalid .* byte\); convert it to UTF-8$"):
        texts(path, document)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04", "holds Parquet, not text"),
        (b"ARROW1\0\0", "holds Arrow, not text"),
        (gzip.compress(b"one"), "holds gzip, not text"),
        (zstd(b"one"), "holds Zstandard, not text"),
        (b"PK\x03\x04", "holds a zip archive, not text"),
        (b"\0" * 100, "line 1 holds NUL, as binary data does, not text"),
        (b"one\n\ntwo\0", "line 3 holds NUL"),
        ("one two".encode("utf-16"), "is not UTF-8 text|holds NUL"),
        ("one two".encode("utf-16-le"), "holds NUL"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_binary_data_of_a_texts_name_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if b"one\n" in content and name != "a.txt":
        return
    with pytest.raises(ValueError, match=f"{name}.*({message})"):
        texts(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a", "a.raw", "a.xml", "a.docx", "a.txt.bz2", "a.gz", "a.parquet.gz", "a.txt.gz.zst"])
def test_what_is_of_no_known_format_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has .*, which is no known format of documents; .*give .txt, .text"):
        documents([write(tmp_path / name, "one")])


def test_paths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "one")
    with pytest.raises(FileNotFoundError, match=r"the text file .*none\.txt does not exist; check its path$"):
        documents([good, tmp_path / "none.txt"])
    with pytest.raises(ValueError, match="is not a file; give it as standard input with -$"):
        documents([good, Path("/dev/null")])
    with pytest.raises(ValueError, match="^document must be one of paragraph, file, line, got 'word'$"):
        Reading(document="word")
    with pytest.raises(ValueError, match="^the name of a field is empty"):
        Reading(ids_field="")


def test_a_folder_gives_its_files_as_people_count_them(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in (10, 9, 1):
        write(folder / f"part-{number}.txt", f"text {number}")
    write(folder / "part-2.txt.gz", gzip.compress(b"text 2"))
    write(folder / "_SUCCESS", "")
    write(folder / ".hidden.csv", "")
    assert texts(folder) == ["text 1", "text 2", "text 9", "text 10"]
    assert [file.name for file in files_of(folder)] == ["part-1.txt", "part-2.txt.gz", "part-9.txt", "part-10.txt"]
    write(folder / "README.md", "About.")
    with pytest.raises(ValueError, match="holds .md, .txt, expected files of one format; name its text files one by"):
        documents([folder])


def test_a_folder_of_folders_or_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    with pytest.raises(ValueError, match="outer holds inner/, expected files of one format"):
        documents([tmp_path / "outer"])
    with pytest.raises(ValueError, match="inner is empty, expected files of one format"):
        documents([tmp_path / "outer" / "inner"])


def test_plain_text_has_no_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one")
    assert [one.source.id for one in documents([path], Reading(id_field="key", text_field="body"))] == [None]
    with pytest.raises(ValueError, match="line 1: it is plain text, which has no field 'ids'"):
        list(documents([path], Reading(ids_field="ids")))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_documents_come_before_the_file_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    line = {"a.txt": "one\n\n", "a.jsonl": '{"text": "one"}\n', "a.csv": "one\n"}[name]
    path = write(tmp_path / name, "text\n" * (name == "a.csv") + line * 200_000)
    with path.open("ab") as file:
        file.write(b"\xff")  # an error only if the whole file is read
    assert next(documents([path])).content == "one"


class _Piped:
    """Standard input with this content."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        (b'\n {"text": "one\\n\\ntwo"}\n{"text": "three"}', ["one\n\ntwo", "three"]),
        (b'\xef\xbb\xbf{"text": "one"}', ["one"]),
        (b"[1] is a citation", ["[1] is a citation"]),
        (b"[\nis a bracket", ["[\nis a bracket"]),
        (b"", []),
    ],
)
def test_standard_input_is_read_and_may_be_read_again(
    monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", _Piped(content))
    assert texts(Path("-")) == texts(Path("-")) == expected


def test_standard_input_that_is_binary_closed_or_endless_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Piped(gzip.compress(b"one")))
    with pytest.raises(ValueError, match="- holds gzip, not text"):
        texts(Path("-"))
    for content in (b'[{"text": "one"}]', b'["one", "two"]', b'[\n  {\n    "text": "one"\n  }\n]'):
        monkeypatch.setattr(sys, "stdin", _Piped(content))
        with pytest.raises(ValueError, match="standard input is a list of JSON, not lines of it; name its file, or "):
            texts(Path("-"))
    monkeypatch.setattr(sys, "stdin", _Piped(b"12345"))
    with pytest.raises(ValueError, match="standard input holds more than 4 bytes"):
        list(documents([Path("-")], Reading(longest=4)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="each process of torchrun would get a part"):
        texts(Path("-"))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="- is standard input, which is closed"):
        texts(Path("-"))


def test_members_of_a_packed_file_follow_one_another(tmp_path: Path) -> None:
    for suffix, pack in ((".gz", gzip.compress), (".zst", zstd)):
        path = write(tmp_path / f"a.txt{suffix}", pack(b"one\n\ntw") + pack(b"o\n"))
        assert texts(path) == ["one", "two"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_damaged_packed_files_are_refused(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    content = "\n\n".join(np.random.default_rng(0).integers(10**9, size=20_000).astype(str)).encode()
    whole = pack(content)
    for damaged in (whole[:-9], whole[: len(whole) // 2], whole + b"rest"):
        with pytest.raises(ValueError, match=f"a.txt{suffix} is not a whole {suffix} file"):
            texts(write(tmp_path / f"a.txt{suffix}", damaged))
    with pytest.raises(ValueError, match=f"is not a whole {suffix} file"):
        texts(write(tmp_path / f"a.txt{suffix}", b"plain text"))


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize("content", [b"\n" * 10**6, b"one\n\n" * 200_000, b"a" * 10**6])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], content: bytes
) -> None:
    path = write(tmp_path / f"a.txt{suffix}", pack(content))
    with pytest.raises(ValueError, match="unpacks to far more than its size"):
        list(documents([path], Reading(small=1000, unpacked=20)))
    assert len(list(documents([path], Reading(small=10**6)))) in (0, 1, 200_000)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a" * 101),
        ("a.txt", "a\n" * 51),
        ("a.jsonl", json.dumps({"text": "a" * 95})),
        ("a.csv", "text\n" + "a" * 101),
        ("a.csv", 'text\n"' + "a\n" * 51 + '"'),
        ("a.json", json.dumps([{"text": "aaaa"}] * 20, indent=1)),
    ],
)
def test_a_line_or_document_that_is_too_long_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.* has more than 100 characters"):
        list(documents([write(tmp_path / name, content)], Reading(longest=100)))
