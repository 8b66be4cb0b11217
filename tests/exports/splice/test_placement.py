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
    with placement.filled(force=False):
        pass
    assert placement.how == {"from/weights.bin": "referred"}
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_a_file_elsewhere_is_copied_and_copied_again_with_force(tmp_path: Path, weights: Path) -> None:
    for force in (False, True):
        if force:
            (tmp_path / "a" / "b" / "sae" / "weights.bin").write_bytes(b"54321")
        placement = Placement(tmp_path / "a" / "b")
        assert placement.locate(weights, "sae") == "sae/weights.bin"
        assert (tmp_path / "a").exists() == force, "locating a file makes no folder"
        with placement.filled(force=force):
            assert (tmp_path / "a" / "b" / "sae" / "weights.bin").read_bytes() == b"12345"
        assert placement.how == {"sae/weights.bin": "copied"}
        assert weights.stat().st_nlink == 1
        assert [path.name for path in (tmp_path / "a" / "b" / "sae").iterdir()] == ["weights.bin"]


def test_a_file_with_a_second_name_in_the_folder_is_not_copied(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.bin").hardlink_to(weights)
    placement = Placement(tmp_path / "out")
    placement.locate(weights)
    with placement.filled(force=False):
        pass
    assert placement.how == {"weights.bin": "referred"}
    assert (tmp_path / "out" / "weights.bin").samefile(weights)


def test_an_equal_file_that_lies_there_is_used(tmp_path: Path, weights: Path) -> None:
    there = tmp_path / "out" / "sae" / "weights.bin"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"12345")
    before = there.stat()
    placement = Placement(tmp_path / "out")
    placement.locate(weights, "sae")
    with placement.filled(force=False):
        pass
    assert placement.how == {"sae/weights.bin": "referred"}
    assert (there.stat().st_ino, there.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_block_that_raises_leaves_no_copy_and_no_folder(tmp_path: Path, weights: Path) -> None:
    placement = Placement(tmp_path / "a" / "b")
    placement.locate(weights, "sae")
    with pytest.raises(KeyError), placement.filled(force=False):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_a_copy_that_fails_removes_the_copies_before_it(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "from" / "more.bin").write_bytes(b"678")
    placement = Placement(tmp_path / "out")
    placement.locate(weights, "sae")
    placement.locate(tmp_path / "from" / "more.bin", "sae")
    (tmp_path / "from" / "more.bin").unlink()
    with pytest.raises(FileNotFoundError), placement.filled(force=False):
        raise AssertionError("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_another_file_at_the_path_of_a_copy_stays_without_force(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights.bin").write_text("mine")
    placement = Placement(out)
    placement.locate(weights)
    with (
        pytest.raises(FileExistsError, match="weights.bin already exists; pass --force"),
        placement.filled(force=False),
    ):
        pass
    assert (out / "weights.bin").read_text() == "mine"
    with placement.filled(force=True):
        assert (out / "weights.bin").read_bytes() == b"12345"


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
    with placement.filled(force=False):
        weights.write_bytes(b"54321")
    assert (tmp_path / name).read_bytes() == b"12345" and placement.how == {name: "copied"}
    again = Placement(tmp_path)
    assert again.locate(tmp_path / "equal" / "weights.bin") == name and again.how == {name: "referred"}
    assert again.locate(weights) != name
