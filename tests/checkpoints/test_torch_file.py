import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_runtime.checkpoints.stored import Stored
from sae_runtime.checkpoints.torch_file import read_torch, tensors_of


class Payload:
    """The content of a hostile file: unpickling would call a function."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_read_as_they_were_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix = torch.randn(5, 7).to(dtype)
    state = {"m": matrix, "turned": matrix.T, "part": matrix[1:3, 2:6], "inner": {"k": torch.tensor(3)}, "name": "TopK"}
    torch.save(state, tmp_path / "ae.pt")
    loaded = read_torch(tmp_path / "ae.pt")
    assert (loaded["name"], loaded["inner"]["k"].name) == ("TopK", "inner.k")
    tensors = tensors_of(tmp_path / "ae.pt", loaded)
    assert tensors.names() == {"m", "turned", "part"}
    for name, expected in (("m", matrix), ("turned", matrix.T), ("part", matrix[1:3, 2:6])):
        for stored, whole in ((tensors.matrix(name), expected), (tensors.matrix(name).T, expected.T)):
            out = np.full(whole.shape, np.nan)
            for rows, part in stored.doubles():
                out[rows] = part
            np.testing.assert_array_equal(out, whole.double().numpy())


def test_a_pickled_object_is_refused_and_not_made(tmp_path: Path) -> None:
    torch.save({"W_enc": torch.zeros(3), "more": Payload(tmp_path / "mark")}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="holds pickled objects, which could run anything and are not loaded"):
        read_torch(tmp_path / "ae.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02}q\x00.", b"not a zip" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ae.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is not a sound file of torch.save"):
        read_torch(tmp_path / "ae.pt")


def test_other_contents_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, expected a dict"):
        read_torch(tmp_path / "list.pt")
    torch.save({"W_enc": torch.zeros(3, 3).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(ValueError, match="not loaded .torch._utils._rebuild_sparse_tensor"):
        read_torch(tmp_path / "sparse.pt")
    torch.save({"W_enc": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "complex.pt")
    with pytest.raises(ValueError, match="tensor of complex64, expected a dense one of floats"):
        read_torch(tmp_path / "complex.pt")


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    torch.save({"W_enc": torch.zeros(1000, 1000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 10_000
    with pytest.raises(ValueError, match="a member is compressed or claims a wrong size"):
        read_torch(tmp_path / "bomb.pt")
    raw = bytearray((tmp_path / "plain.pt").read_bytes())
    entry = raw.rindex(b"PK\x01\x02")  # the last member of the directory
    raw[entry + 24 : entry + 28] = struct.pack("<I", 1 << 31)  # claims two gigabytes
    (tmp_path / "claims.pt").write_bytes(raw)
    with pytest.raises(ValueError, match="a member is compressed or claims a wrong size"):
        read_torch(tmp_path / "claims.pt")


def test_a_view_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"W_enc": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="more than the file holds"):
        read_torch(tmp_path / "ae.pt")


@pytest.mark.parametrize("change", [-4, 4])
def test_a_tensor_of_more_or_fewer_bytes_than_it_needs_is_refused(tmp_path: Path, change: int) -> None:
    torch.save({"b_enc": torch.ones(50), "k": torch.tensor(3), "empty": torch.zeros(0)}, tmp_path / "sound.pt")
    assert set(read_torch(tmp_path / "sound.pt")) == {"b_enc", "k", "empty"}
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "ae.pt", "w") as spoilt:
        for member in sound.infolist():
            content = sound.read(member)
            if member.filename.endswith("data/0"):
                content = content[:change] if change < 0 else content + bytes(change)
            spoilt.writestr(member.filename, content)
    with pytest.raises(ValueError, match="does not hold as many numbers as its tensors need"):
        read_torch(tmp_path / "ae.pt")


def test_damaged_files_are_refused_or_read_as_torch_reads_them(tmp_path: Path) -> None:
    torch.save({"W_enc": torch.arange(6.0).reshape(2, 3), "k": torch.tensor(3)}, tmp_path / "ae.pt")
    raw, rng = (tmp_path / "ae.pt").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        spoilt = bytearray(raw)
        for _ in range(int(rng.integers(1, 4))):
            spoilt[int(rng.integers(len(raw)))] = int(rng.integers(256))
        spoilt = spoilt[: int(rng.integers(len(raw)))] if rng.random() < 0.1 else spoilt
        (tmp_path / "spoilt.pt").write_bytes(spoilt)
        try:
            state = {name: s.open() for name, s in read_torch(tmp_path / "spoilt.pt").items() if isinstance(s, Stored)}
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        expected = torch.load(io.BytesIO(bytes(spoilt)), weights_only=True)
        for name, array in state.items():
            np.testing.assert_array_equal(array, expected[name].numpy())
    assert 30 < refused <= 120
