import hashlib
import shutil
from pathlib import Path

import pytest

from sae_runtime.exports.splice.placement import Placement


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "weights.bin").write_bytes(b"12345")
    return tmp_path / "from" / "weights.bin"


def test_a_file_below_the_folder_is_referred_to_where_it_is(tmp_path: Path, weights: Path) -> None:
    placement = Placement(tmp_path)
    assert placement.locate(weights, "elsewhere") == "from/weights.bin" == placement.locate(weights)
    assert placement.copies(tmp_path / "g.onnx") == {}
    assert placement.how == {"from/weights.bin": "referred"}
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_a_file_elsewhere_is_copied(tmp_path: Path, weights: Path) -> None:
    for different in (False, True):
        placement = Placement(tmp_path / "a" / "b")
        if different:
            (tmp_path / "a" / "b" / "sae").mkdir(parents=True)
            (tmp_path / "a" / "b" / "sae" / "weights.bin").write_bytes(b"54321")
        assert placement.locate(weights, "sae") == "sae/weights.bin" == placement.locate(weights, "elsewhere")
        assert (tmp_path / "a").exists() == different, "locating a file makes no folder"
        assert placement.how == {"sae/weights.bin": "copied"}
        assert placement.copies(tmp_path / "a" / "b" / "g.onnx") == {"sae/weights.bin": weights}


def test_a_link_keeps_its_name_and_two_names_of_one_file_are_two_copies(tmp_path: Path, weights: Path) -> None:
    for name in ("vocab.json", "merges.json"):
        (tmp_path / name).symlink_to(weights)
    placement = Placement(tmp_path / "out")
    assert [placement.locate(tmp_path / name) for name in ("vocab.json", "merges.json")] == [
        "vocab.json",
        "merges.json",
    ]
    assert placement.copies(tmp_path / "out" / "g.onnx") == {"vocab.json": weights, "merges.json": weights}


def test_a_graph_is_not_written_over_a_file_that_it_reads(tmp_path: Path, weights: Path) -> None:
    for folder in (tmp_path, tmp_path / "out"):
        placement = Placement(folder)
        location = placement.locate(weights)
        with pytest.raises(ValueError, match=r"two files would be .*weights\.bin; name another --output"):
            placement.copies(folder / location)


def test_a_file_with_a_second_name_in_the_folder_is_not_copied(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.bin").hardlink_to(weights)
    placement = Placement(tmp_path / "out")
    placement.locate(weights)
    assert placement.copies(tmp_path / "g.onnx") == {}
    assert placement.how == {"weights.bin": "referred"}
    assert (tmp_path / "out" / "weights.bin").samefile(weights)


def test_an_equal_file_that_lies_there_is_used(tmp_path: Path, weights: Path) -> None:
    there = tmp_path / "out" / "sae" / "weights.bin"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"12345")
    before = there.stat()
    placement = Placement(tmp_path / "out")
    placement.locate(weights, "sae")
    assert placement.copies(tmp_path / "g.onnx") == {}
    assert placement.how == {"sae/weights.bin": "referred"}
    assert (there.stat().st_ino, there.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_two_files_with_one_path_and_a_missing_file_are_refused(tmp_path: Path, weights: Path) -> None:
    placement = Placement(tmp_path / "out")
    placement.locate(weights)
    (tmp_path / "weights.bin").write_text("another")
    with pytest.raises(ValueError, match="two files would be weights.bin"):
        placement.locate(tmp_path / "weights.bin")
    with pytest.raises(FileNotFoundError, match="none.bin is missing"):
        placement.locate(tmp_path / "none.bin")


def test_a_file_of_a_bundle_is_copied_by_its_content_even_below_the_folder(tmp_path: Path, weights: Path) -> None:
    (weights.parent / "sae_runtime.json").write_text("{}")
    shutil.copytree(weights.parent, tmp_path / "equal")
    placement = Placement(tmp_path)
    name = f"weights.{hashlib.sha256(b'12345').hexdigest()[:16]}.bin"
    assert placement.locate(weights, "below") == name == placement.locate(tmp_path / "equal" / "weights.bin")
    assert placement.copies(tmp_path / "graph.onnx") == {name: weights.resolve()} and placement.how == {name: "copied"}
    shutil.copyfile(weights, tmp_path / name)
    weights.write_bytes(b"54321")
    again = Placement(tmp_path)
    assert again.locate(tmp_path / "equal" / "weights.bin") == name and again.how == {name: "referred"}
    assert again.locate(weights) != name
