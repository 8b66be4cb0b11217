import zipfile
from pathlib import Path

import numpy as np
import pytest

from sae_runtime.checkpoints.npz_file import open_npz


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_read_as_they_were_saved(tmp_path: Path, dtype: str, compressed: bool) -> None:
    array = np.random.default_rng(0).normal(size=(5, 7)).astype(dtype)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "p.npz", a=array, turned=array.T, one=array[0])
    tensors = open_npz(tmp_path / "p.npz")
    assert tensors.names() == {"a", "turned", "one"}
    np.testing.assert_array_equal(tensors.vector("one", 7), array[0].astype(np.float64))
    for stored, expected in ((tensors.matrix("a"), array), (tensors.matrix("turned"), array.T)):
        out = np.full(expected.shape, np.nan)
        for rows, part in stored.doubles():
            out[rows] = part
        np.testing.assert_array_equal(out, expected.astype(np.float64))


def test_bombs_objects_and_other_files_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros((1 << 23), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match="it would unpack from"):
        open_npz(tmp_path / "bomb.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}, []], object))
    with pytest.raises(ValueError, match="objects.npz is not a sound file of numpy.savez"):
        open_npz(tmp_path / "objects.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(ValueError, match="readme.txt is not an array"):
        open_npz(tmp_path / "other.npz")
    with zipfile.ZipFile(tmp_path / "open.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00\x06\x00{((((\n")  # a header whose brackets stay open
    with pytest.raises(ValueError, match=r"open.npz is not a sound file of numpy.savez"):
        open_npz(tmp_path / "open.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match=r"text.npz is not a sound file of numpy.savez"):
        open_npz(tmp_path / "text.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_refused(tmp_path: Path, compressed: bool) -> None:
    array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "p.npz", a=array)
    raw, rng = (tmp_path / "p.npz").read_bytes(), np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        spoilt = bytearray(raw)
        spoilt[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        (tmp_path / "spoilt.npz").write_bytes(spoilt)
        try:
            array_read = open_npz(tmp_path / "spoilt.npz").matrix("a").open()
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        np.testing.assert_array_equal(array_read, array)  # zip archives have checksums
    assert refused > 60
