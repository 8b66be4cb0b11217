"""Features of a folder, read back: they equal what the SAE gave, and a changed file is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy
from conftest import make_x

from sae_runtime import Features, StoredFeatures, load, open_activations, read_features
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.extract import extract

ROWS, PART = 90, 40


@pytest.fixture(scope="module")
def made(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Features]:
    """A folder of three parts, and the features that it should hold."""
    home = tmp_path_factory.mktemp("stored")
    ids = np.arange(ROWS, dtype=np.int32)
    x = make_x(ROWS)
    tensors = {"activations": x, "tokens": ids % 7, "documents": ids // 8, "positions": ids % 8}
    safetensors.numpy.save_file(tensors, home / "x.safetensors")
    sae = load(bundle_of("mutual"))
    extract(ArraySource(sae, open_activations(home / "x.safetensors"), part=PART), home / "f", values="float32")
    return home / "f", sae.encode(x)


@pytest.fixture
def copy(made: tuple[Path, Features], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "f"))


def assert_equal(found: Features, expected: Features) -> None:
    np.testing.assert_array_equal(found.to_dense(), expected.to_dense())
    assert found.shape == expected.shape


def test_all_rows_and_slices_are_what_the_sae_gave(made: tuple[Path, Features]) -> None:
    stored, expected = read_features(made[0]), made[1]
    assert len(stored) == ROWS and [part.rows for part in stored.parts] == [40, 40, 10]
    assert stored.matches == len(expected.values) and stored.d_sae == expected.d_sae
    assert_equal(stored.features(), expected)
    for span in (slice(35, 85), slice(40, 80), slice(-3, None), slice(50, 50), slice(0, 1)):
        assert_equal(stored[span], expected[span])
    assert stored.to_scipy().shape == (ROWS, expected.d_sae)
    assert_equal(stored.to_features(stored.table().slice(30, 20)), expected[30:50])


def test_arrow_gives_the_rows_of_all_parts_and_of_one_document(made: tuple[Path, Features]) -> None:
    stored, expected = read_features(made[0]), made[1]
    assert stored.table(["doc", "pos"]).column("doc").to_pylist() == [i // 8 for i in range(ROWS)]
    assert stored.dataset().count_rows() == ROWS and stored.dataset().to_table().equals(stored.table())
    for number in (0, 4, 5, 11):
        rows = stored.document(number)
        assert_equal(stored.to_features(rows), expected[8 * number : 8 * number + 8])
    assert stored.document(3, ["pos"]).column("pos").to_pylist() == list(range(8))
    for absent in (-1, 12):
        with pytest.raises(IndexError, match=f"has no document {absent}"):
            stored.document(absent)
    with pytest.raises(ValueError, match="has no column 'textt'|has no column textt"):
        stored.table(["textt"])


def test_rows_of_documents_are_read_too(
    made: tuple[Path, Features], bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    source = ArraySource(load(bundle_of("mutual")), open_activations(made[0].parent / "x.safetensors"), part=PART)
    extract(source, tmp_path / "f", per="document", values="float32")
    stored, dense = read_features(tmp_path / "f"), made[1].to_dense()
    assert len(stored) == 12 and stored.per == "document" and stored.dataset().count_rows() == 12
    expected = np.stack([dense[8 * i : 8 * i + 8].max(axis=0) for i in range(12)])
    np.testing.assert_array_equal(stored.features().to_dense(), expected)
    np.testing.assert_array_equal(stored.to_features(stored.document(7)).to_dense(), expected[7:8])
    with pytest.raises(ValueError, match="has no tokens/; its rows are documents"):
        stored.dataset("tokens")


def test_parts_and_folders_without_rows_give_none(copy: Path) -> None:
    table = pyarrow.parquet.read_table(copy / "tokens" / "part-00002.parquet")
    pyarrow.parquet.write_table(table.slice(0, 0), copy / "tokens" / "part-00002.parquet")
    data = (copy / "tokens" / "part-00002.parquet").read_bytes()
    record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def empty(index: Any) -> None:
        index["parts"][2].update(tokens=0, matches=0)
        index["parts"][2]["files"]["tokens/part-00002.parquet"] = record

    stored = changed(copy, empty)
    assert stored.parts[2].features().shape == (0,) and stored.features().shape == (80,) == (len(stored.table()),)
    stored = changed(copy, lambda index: index.update(parts=[]))
    assert stored.features().shape == (0,) and len(stored) == 0
    with pytest.raises(ValueError, match="has no parts"):
        stored.table()


@pytest.mark.parametrize("where", ["head", "middle", "end"])
def test_an_altered_part_is_noticed_and_the_others_are_read(
    copy: Path, made: tuple[Path, Features], where: str
) -> None:
    path = copy / "tokens" / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[{"head": 5, "middle": len(data) // 2, "end": len(data) - 12}[where]] ^= 1
    path.write_bytes(data)
    stored = read_features(copy)
    assert_equal(stored[:40], made[1][:40])
    with pytest.raises(ValueError, match="part-00001.parquet was altered"):
        stored.features()


def test_a_part_that_is_missing_short_or_led_elsewhere_is_refused_when_the_folder_is_opened(copy: Path) -> None:
    path = copy / "tokens" / "part-00001.parquet"
    path.rename(copy.parent / "elsewhere")
    with pytest.raises(FileNotFoundError, match="part-00001.parquet is missing"):
        read_features(copy)
    path.symlink_to(copy.parent / "elsewhere")
    with pytest.raises(ValueError, match="a link out of its folder"):
        read_features(copy)
    path.unlink()
    path.write_bytes((copy.parent / "elsewhere").read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or altered"):
        read_features(copy)


def changed(folder: Path, change: Callable[[Any], None]) -> StoredFeatures:
    index = json.loads((folder / "features.json").read_text())
    change(index)
    (folder / "features.json").write_text(json.dumps(index))
    return read_features(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(format_version=1), "format version 1"),
        (lambda index: index.pop("parts"), "parts"),
        (lambda index: index.update(d_sae="150"), "d_sae"),
        (lambda index: index.update(per="word"), "per must be"),
        (lambda index: index["parts"][0].update(tokens=-1), "fewer than 0"),
        (lambda index: index["parts"].reverse(), "part 0 has the files"),
        (lambda index: index["parts"][0]["files"].update({"../x": {"size": 1, "sha256": ""}}), "part 0 has the files"),
        (lambda index: index["parts"][0].update(files={}), "part 0 has the files"),
    ],
)
def test_an_index_of_another_form_is_refused(copy: Path, change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(copy, change)


def test_features_of_another_sae_are_noticed(copy: Path) -> None:
    stored = changed(copy, lambda index: index.update(d_sae=3))
    with pytest.raises(ValueError, match="expected 0 to 2"):
        stored.features()


def test_what_holds_no_features_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "features.json").unlink()
    with pytest.raises(ValueError, match="not finished; run the same extract again"):
        read_features(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder of features"):
        read_features(tmp_path / "empty")
    (tmp_path / "empty" / "store.json").write_text("{}")
    with pytest.raises(ValueError, match="open_store"):
        read_features(tmp_path / "empty")
    pyarrow.parquet.write_table(pyarrow.table({"doc": [1]}), tmp_path / "old.parquet")
    with pytest.raises(ValueError, match="a file of an older version"):
        read_features(tmp_path / "old.parquet")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_features(tmp_path / "nothing")
