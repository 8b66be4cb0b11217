"""Documents are read from any place on, without what stands before it where the format can be entered."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_runtime.activations.documents import Document, documents
from sae_runtime.activations.reading import Reading

TEXTS = ["one", "two\nstill two", "", "drei — é", "four", "  ", "five", "six\U0001f600", "seven", "eight"]
FIELDS = Reading(id_field="name", columns=("kind", "n"))


def records() -> list[dict[str, object]]:
    return [{"text": text, "name": f"d{i}", "kind": i % 3, "n": [i]} for i, text in enumerate(TEXTS)]


def json_lines(path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records()]
    path.write_bytes(("\n\r\n".join(lines)).encode())  # blank lines, and ends of two kinds


def json_list(path: Path) -> None:
    path.write_text(json.dumps(records()))


def table(path: Path) -> None:
    path.write_text("text,name\n" + "".join(f"t{i},{i}\n" for i in range(9)))


def packed(path: Path) -> None:
    json_lines(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def rows(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(records()), path, row_group_size=3)


def arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(records())
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(records())
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def saved(path: Path) -> None:
    path.mkdir()
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"{n}.arrow"} for n in range(3)]}))
    for number in range(3):
        table = pa.Table.from_pylist(records()[4 * number : 4 * number + 4])
        writer = pa.ipc.new_stream if number else pa.ipc.new_file
        with writer(path / f"{number}.arrow", table.schema) as file:
            file.write_table(table)


def plain(newline: str, mark: bytes = b"") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(mark + "\n\n".join(TEXTS).replace("\n", newline).encode())

    return write


FILES: dict[str, tuple[str, Callable[[Path], None], Reading]] = {
    "lines of JSON": ("a.jsonl", json_lines, FIELDS),
    "packed": ("a.jsonl.gz", packed, FIELDS),
    "JSON": ("a.json", json_list, FIELDS),
    "lines in .json": ("b.json", json_lines, FIELDS),
    "CSV": ("a.csv", table, Reading(id_field="name")),
    "Parquet": ("a.parquet", rows, FIELDS),
    "Arrow": ("a.arrow", arrow_file, FIELDS),
    "stream": ("b.arrow", arrow_stream, FIELDS),
    "dataset": ("saved", saved, FIELDS),
    "paragraphs": ("a.txt", plain("\n"), Reading()),
    "marked": ("b.txt", plain("\n", b"\xef\xbb\xbf"), Reading()),
    "paragraphs of Windows": ("c.txt", plain("\r\n"), Reading()),
    "lines": ("d.md", plain("\r"), Reading(document="line")),
    "file": ("e.txt", plain("\n"), Reading(document="file")),
}


def facts(found: Document) -> tuple[Any, ...]:
    return found.content, found.source, found.columns, found.place


@pytest.mark.parametrize("name", FILES)
def test_documents_from_each_place_on_are_the_rest(tmp_path: Path, name: str) -> None:
    file, write, reading = FILES[name]
    write(tmp_path / file)
    (tmp_path / "first.jsonl").write_text(json.dumps(records()[0]))
    paths = [tmp_path / "first.jsonl", tmp_path / file]
    if file.endswith((".txt", ".md", ".csv")):
        paths = paths[1:]
    whole = list(map(facts, documents(paths, reading)))
    assert len(whole) > (0 if name == "file" else 5)
    for number, (*_, place) in enumerate(whole):
        assert list(map(facts, documents(paths, reading, start=place))) == whole[number:]


@pytest.mark.parametrize("name", ["lines of JSON", "Parquet", "paragraphs", "paragraphs of Windows", "lines"])
def test_what_stands_before_a_place_is_not_read(tmp_path: Path, name: str) -> None:
    file, write, reading = FILES[name]
    path = tmp_path / file
    write(path)
    whole = list(map(facts, documents([path], reading)))
    raw = bytearray(path.read_bytes())
    damaged = slice(4, raw.index(b"d1" if name == "Parquet" else b"two"))
    raw[damaged] = b"\xff" * (damaged.stop - 4)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"is not UTF-8|not a whole file"):
        list(documents([path], reading))
    assert list(map(facts, documents([path], reading, start=whole[4][-1]))) == whole[4:]


def test_columns_are_kept_and_a_missing_one_is_named(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl")
    rows(tmp_path / "a.parquet")
    for file in ("a.jsonl", "a.parquet"):
        found = list(documents([tmp_path / file], FIELDS))
        assert [one.columns for one in found][:2] == [(0, [0]), (1, [1])]
        with pytest.raises(ValueError, match=r"has no field 'topic'; it has 'text', 'name', 'kind', 'n'; name one of"):
            list(documents([tmp_path / file], Reading(columns=("kind", "topic"))))
    plain("\n")(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"it is plain text, which has no column 'kind'; give a format with fields"):
        list(documents([tmp_path / "a.txt"], Reading(columns=("kind",))))
