import re
from pathlib import Path

import pytest

from sae_runtime.activations.text import documents


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a"])
def test_paragraphs_are_blocks_of_nonblank_lines(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\n \t\n one\ntwo \n\n\n  \nthree\n\u3000\nfour")
    assert list(documents([path])) == [" one\ntwo ", "three", "four"]


def test_line_ends_of_windows_and_a_byte_order_mark_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    assert list(documents([path])) == ["one\ntwo", "three"]


def test_document_file_gives_whole_files_in_the_order_of_the_paths(tmp_path: Path) -> None:
    first = write(tmp_path / "z.txt", "one\n\ntwo\n")
    second = write(tmp_path / "a.txt", "three")
    blank = write(tmp_path / "b.txt", " \n\n")
    empty = write(tmp_path / "c.txt", "")
    assert list(documents([first, blank, empty, second], "file")) == ["one\n\ntwo\n", "three"]


@pytest.mark.parametrize("document", ["paragraph", "file"])
def test_each_line_of_json_is_a_document(tmp_path: Path, document: str) -> None:
    path = write(tmp_path / "a.JSONL", '{"text": "one\\n\\ntwo", "id": 3}\n\n{"text": " "}\n{"text": "drei\\u00df"}')
    assert list(documents([path], document)) == ["one\n\ntwo", "dreiß"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 3 is not readable JSON \(.*\)$"),
        ("[" * 100_000, r"line 3 is not readable JSON \(.*\)$"),
        ('{"body": "a"}', "line 3 must have the fields text, text is missing$"),
        ('["text"]', r"line 3 must have the fields text, got \['text'\]$"),
        ('{"text": 5}', r"line 3\.text must be str, got 5$"),
        ('{"text": null}', r"line 3\.text must be str, got None$"),
        (r'{"text": "\ud800"}', r"line 3: the text holds half a character \(.*\); repair it$"),
    ],
)
def test_bad_json_is_refused_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
    found = documents([path])
    assert next(found) == "fine"
    with pytest.raises(ValueError, match="^" + re.escape(str(path)) + ", " + message):
        next(found)


@pytest.mark.parametrize(("name", "document"), [("a.txt", "paragraph"), ("a.txt", "file"), ("a.jsonl", "paragraph")])
def test_text_in_another_encoding_is_refused(tmp_path: Path, name: str, document: str) -> None:
    path = write(tmp_path / name, '{"text": "Stra\u00dfe"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.\w+ is not UTF-8 text \(invalid .* byte\); convert it to UTF-8$"):
        list(documents([path], document))


def test_paths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "one")
    with pytest.raises(FileNotFoundError, match=r"the text file .*none\.txt does not exist; check its path$"):
        documents([good, tmp_path / "none.txt"])
    with pytest.raises(ValueError, match="is not a file; name the text files inside one by one$"):
        documents([good, tmp_path])
    with pytest.raises(ValueError, match="^document must be one of paragraph, file, got 'line'$"):
        documents([good], "line")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_documents_come_before_the_file_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    line = '{"text": "one"}\n\n' if name.endswith("jsonl") else "one\n\n"
    path = write(tmp_path / name, line * 200_000 + "\n")
    with path.open("ab") as file:
        file.write(b"\xff")  # an error only if the whole file is read
    assert next(documents([path])) == "one"
