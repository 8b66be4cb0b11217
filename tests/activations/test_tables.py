"""Documents of columnar files, which pyarrow and the datasets library write here, and ours reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from sae_runtime.activations.documents import documents, files_of
from sae_runtime.activations.reading import Reading

TEXTS = ["one, two\nthree", "", "\u200b", 'Straße "漢字" 😀', "x" * 300]
KEYS = ["a", "b", "c", "d", "e"]
ROWS = [0, 3, 4]
IDS = [[5, 6], [], [7], [8, 9, 10], []]
N = len(TEXTS)


def table(kind: Any = None, count: int = 1) -> pyarrow.Table:
    text = pyarrow.array(TEXTS * count, kind or pyarrow.string())
    return pyarrow.table(
        {"n": list(range(N * count)), "text": text, "ids": IDS * count, "nested": [{"text": "a"}] * N * count}
    ).append_column("key", pyarrow.array(KEYS * count))


def parquet(path: Path, content: pyarrow.Table) -> None:
    pyarrow.parquet.write_table(content, path, row_group_size=2)


def arrow_file(path: Path, content: pyarrow.Table) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)


def arrow_stream(path: Path, content: pyarrow.Table) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=2)


def feather(path: Path, content: pyarrow.Table) -> None:
    pyarrow.feather.write_feather(content, str(path), compression="zstd")


WRITERS: dict[str, Callable[[Path, pyarrow.Table], None]] = {
    "a.parquet": parquet,
    "file.arrow": arrow_file,
    "stream.arrow": arrow_stream,
    "a.feather": feather,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())]
)
def test_columnar_files_give_texts_with_their_rows_and_ids(tmp_path: Path, name: str, kind: Any) -> None:
    WRITERS[name](tmp_path / name, table(kind, count=200))
    found = list(documents([tmp_path / name], Reading(id_field="key")))
    rows = [N * part + row for part in range(200) for row in ROWS]
    assert [one.source.row for one in found] == rows
    assert [one.content for one in found] == [TEXTS[row % N] for row in rows]
    assert [one.source.id for one in found] == [KEYS[row % N] for row in rows]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", [pyarrow.list_(pyarrow.int32()), pyarrow.large_list(pyarrow.uint16())])
def test_columnar_files_give_token_ids(tmp_path: Path, name: str, kind: Any) -> None:
    WRITERS[name](tmp_path / name, pyarrow.table({"input_ids": pyarrow.array(IDS, kind)}))
    found = list(documents([tmp_path / name], Reading(ids_field="input_ids")))
    assert [one.source.row for one in found] == [0, 2, 3]
    for one, expected in zip(found, ([5, 6], [7], [8, 9, 10]), strict=True):
        np.testing.assert_array_equal(np.asarray(one.content), expected)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("body", "has no field 'body'; it has 'n', 'text', 'ids', 'nested', 'key'"),
        ("nested.text", "has no field 'nested.text'; it has"),
        ("nested", "row 0: the field 'nested' must be text, got {'text': 'a'}"),
        ("ids", r"row 0: the field 'ids' must be text, got \[5, 6\]"),
        ("n", "row 0: the field 'n' must be text, got 0"),
    ],
)
def test_columns_that_hold_no_text_are_refused(tmp_path: Path, name: str, field: str, message: str) -> None:
    WRITERS[name](tmp_path / name, table())
    with pytest.raises(ValueError, match=f"{name}.* ?{message}"):
        list(documents([tmp_path / name], Reading(text_field=field)))


@pytest.mark.parametrize("name", WRITERS)
def test_null_and_bytes_are_refused_with_their_row(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, pyarrow.table({"text": ["a", None]}))
    with pytest.raises(ValueError, match=f"{name}, row 1: the field 'text' must be text, got null"):
        list(documents([tmp_path / name]))
    WRITERS[name](tmp_path / name, pyarrow.table({"text": [b"a"]}))
    with pytest.raises(ValueError, match=f"{name}, row 0: the field 'text' must be text, got b'a'"):
        list(documents([tmp_path / name]))
    invalid = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(np.array([0, 1], np.int32)), pyarrow.py_buffer(b"\xff")
    )
    WRITERS[name](tmp_path / name, pyarrow.table({"text": invalid}))
    with pytest.raises(ValueError, match=f"{name} is not a whole file of its format .*(decode|UTF8)"):
        list(documents([tmp_path / name]))


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_columnar_files_are_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, table(count=50))
    whole = (tmp_path / name).read_bytes()
    for damaged in (b"", b"text", whole[:4], whole[: len(whole) // 2], whole[8:]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} is not a whole file of its format"):
            list(documents([tmp_path / name]))


def test_a_stream_that_lacks_its_end_or_has_another_after_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    arrow_stream(path, pyarrow.table({"text": ["a", "b", "c", "d"]}))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])  # all four rows are there
    with pytest.raises(ValueError, match="a.arrow is not a whole file .*without the mark of its end"):
        list(documents([path]))
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match=f"ends at byte {len(whole)} of {2 * len(whole)}"):
        list(documents([path]))
    arrow_stream(path, pyarrow.table({"text": pyarrow.array([], pyarrow.string())}))
    assert list(documents([path])) == []


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pyarrow.table([["a"], ["b"]], ["text", "text"])
    arrow_file(tmp_path / "a.arrow", twice)
    with pytest.raises(ValueError, match="a.arrow has 2 fields of the name 'text'; rename all but one"):
        list(documents([tmp_path / "a.arrow"]))


@pytest.mark.parametrize("name", WRITERS)
def test_few_bytes_that_stand_for_many_texts_are_refused(tmp_path: Path, name: str) -> None:
    kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    WRITERS[name](tmp_path / name, pyarrow.table({"text": pyarrow.array(["x" * 10_000] * 2_000, kind)}))
    with pytest.raises(ValueError, match=f"{name} unpacks to far more than its size"):
        list(documents([tmp_path / name], Reading(small=10**5, unpacked=20)))


def test_a_folder_of_parquet_files_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(11):
        parquet(tmp_path / "data" / f"train-{number}.parquet", pyarrow.table({"text": [f"text {number}"]}))
    assert [one.content for one in documents([tmp_path / "data"])] == [f"text {number}" for number in range(11)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A dataset of the datasets library in three files, of which rows were chosen."""
    whole = datasets.Dataset.from_dict(
        {"text": ["dropped", *TEXTS, "last"], "key": ["z", *KEYS, "f"], "ids": [[1]] * 7}
    )
    whole.select(range(1, 7)).save_to_disk(tmp_path / "saved", num_shards=3)
    return tmp_path / "saved"


def test_a_saved_dataset_gives_its_documents_and_its_row_numbers(saved: Path) -> None:
    found = list(documents([saved], Reading(id_field="key")))
    read_by_its_library = datasets.load_from_disk(str(saved))
    assert [one.source.row for one in found] == [*ROWS, 5]
    for one in found:
        row = read_by_its_library[one.source.row]
        assert (one.content, one.source.id, one.source.file) == (row["text"], row["key"], str(saved))
    names = [file.name for file in files_of(saved)]
    assert names == ["state.json", *(f"data-{number:05d}-of-00003.arrow" for number in range(3))]


def test_a_dataset_of_several_splits_is_refused_by_their_names(saved: Path, tmp_path: Path) -> None:
    both = datasets.DatasetDict(train=datasets.load_from_disk(str(saved)), test=datasets.load_from_disk(str(saved)))
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="both holds several splits; name one, .*both/test or .*both/train$"):
        documents([tmp_path / "both"])
    assert len(list(documents([tmp_path / "both" / "train"]))) == 4


def test_a_saved_dataset_without_a_file_or_with_indices_is_refused(saved: Path) -> None:
    state = (saved / "state.json").read_text()
    (saved / "state.json").write_text(state.replace("{", '{"_indices_data_files": [{"filename": "i.arrow"}],', 1))
    with pytest.raises(ValueError, match="saved was saved with indices by an old version of datasets"):
        documents([saved])
    (saved / "state.json").write_text(state.replace("data-00001", "../data-00001"))
    with pytest.raises(ValueError, match="saved lacks its file ../data-00001-of-00003.arrow; save it again"):
        documents([saved])
    (saved / "state.json").write_text(state)
    (saved / "data-00002-of-00003.arrow").unlink()
    with pytest.raises(ValueError, match="saved lacks its file data-00002-of-00003.arrow; save it again"):
        documents([saved])
    (saved / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="state.json must have the fields _data_files"):
        documents([saved])
