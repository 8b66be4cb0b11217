from pathlib import Path

import pytest

from sae_runtime.exports.placement import Placement


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "weights.bin").write_bytes(b"12345")
    return tmp_path / "from" / "weights.bin"


def test_a_file_below_the_folder_is_referred_to(tmp_path: Path, weights: Path) -> None:
    place = Placement(tmp_path)
    assert place.locate(weights, "elsewhere") == "from/weights.bin" == place.locate(weights)
    with place.filled(force=False):
        pass
    assert place.how == {"from/weights.bin": "referred"}
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


@pytest.mark.parametrize("link", [True, False])
def test_a_file_elsewhere_is_brought(tmp_path: Path, weights: Path, link: bool) -> None:
    for _ in range(2):  # the second time it is there
        place = Placement(tmp_path / "a" / "b", link=link)
        assert place.locate(weights, "sae") == "sae/weights.bin"
        assert not (tmp_path / "a").exists() or _
        with place.filled(force=not link):
            assert (tmp_path / "a" / "b" / "sae" / "weights.bin").read_bytes() == b"12345"
        assert place.how == {"sae/weights.bin": "linked" if link else "copied"}
        assert (weights.stat().st_nlink == 2) == link


def test_where_nothing_can_be_linked_it_is_copied(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr("os.link", refuse)
    place = Placement(tmp_path / "out", link=True)
    place.locate(weights)
    with place.filled(force=False):
        pass
    assert place.how == {"weights.bin": "copied"} and weights.stat().st_nlink == 1


def test_a_failed_block_leaves_nothing(tmp_path: Path, weights: Path) -> None:
    place = Placement(tmp_path / "a" / "b")
    place.locate(weights, "sae")
    with pytest.raises(KeyError), place.filled(force=False):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


def test_what_stands_in_the_way(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights.bin").write_text("mine")
    place = Placement(out)
    place.locate(weights)
    with pytest.raises(FileExistsError, match="weights.bin already exists; pass --force"), place.filled(force=False):
        pass
    assert (out / "weights.bin").read_text() == "mine"
    with place.filled(force=True):
        assert (out / "weights.bin").read_bytes() == b"12345"
    (tmp_path / "weights.bin").write_text("another")
    with pytest.raises(ValueError, match="two files would be weights.bin"):
        place.locate(tmp_path / "weights.bin")
    with pytest.raises(FileNotFoundError, match="none.bin is missing"):
        place.locate(tmp_path / "none.bin")
