"""Rows of arrays in the files that people have: packed, mapped, of torch, in folders, of images and patches."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray

from sae_runtime import open_activations
from sae_runtime.activations.array_files import read_arrays

X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
IMAGES = X.reshape(3, 4, 4)

Save = Callable[[Path, NDArray[Any]], Any]


def save_npz(path: Path, x: NDArray[Any]) -> None:
    np.savez(path, acts=x, seed=np.array(3), ids=np.arange(3, dtype=np.uint16))


def save_packed(path: Path, x: NDArray[Any]) -> None:
    np.savez_compressed(path, other=x + 1, activations=x)


def save_torch(path: Path, x: NDArray[Any]) -> None:
    torch.save(torch.from_numpy(x.copy()), path)


def save_state(path: Path, x: NDArray[Any]) -> None:
    torch.save({"layer": 3, "acts": torch.nn.Parameter(torch.from_numpy(x.copy()))}, path)


SAVERS: dict[str, Save] = {
    "x.npy": np.save,
    "fortran.npy": lambda path, x: np.save(path, np.asfortranarray(x)),
    "x.npz": save_npz,
    "fortran.npz": lambda path, x: save_npz(path, np.asfortranarray(x)),
    "packed.npz": save_packed,
    "x.safetensors": lambda path, x: safetensors.numpy.save_file({"acts": np.ascontiguousarray(x)}, path),
    "x.pt": save_torch,
    "state.pth": save_state,
    "x.bin": save_state,
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", SAVERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, dtype: str) -> None:
    x = X.astype(dtype)
    SAVERS[name](tmp_path / name, x)
    activations = open_activations(tmp_path / name)
    np.testing.assert_array_equal(activations.slice(0, 99), x.astype(np.float32))
    np.testing.assert_array_equal(activations.rows(np.array([7, 2])), x.astype(np.float32)[[7, 2]])
    assert activations.documents is activations.positions is activations.tokens is None


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 2, 2, 4), (1, 12, 4)])
@pytest.mark.parametrize("name", SAVERS)
def test_images_of_patches_are_rows_with_their_origin(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    SAVERS[name](tmp_path / name, X.reshape(shape))
    activations = open_activations(tmp_path / name)
    np.testing.assert_array_equal(activations.slice(0, 99), X)
    patches = 12 // shape[0]
    assert activations.documents is not None and activations.positions is not None
    assert activations.documents.tolist() == [row // patches for row in range(12)]
    assert activations.positions.tolist() == [row % patches for row in range(12)]


def test_bfloat16_of_torch_is_widened(tmp_path: Path) -> None:
    tensor = torch.from_numpy(IMAGES.copy()).bfloat16()
    torch.save(tensor.transpose(0, 1), tmp_path / "x.pt")
    expected = tensor.transpose(0, 1).float().numpy().reshape(12, 4)
    np.testing.assert_array_equal(open_activations(tmp_path / "x.pt").slice(0, 99), expected)


def test_a_stored_npz_is_mapped_and_not_read(tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", X)
    shard = open_activations(tmp_path / "x.npz").shards[0]
    assert isinstance(shard.x, np.memmap)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_a_folder_gives_the_rows_of_its_files_as_people_count_them(tmp_path: Path, suffix: str) -> None:
    save = SAVERS[f"x{suffix}"]
    for number, part in ((10, X[8:]), (2, X[3:8]), (1, X[:3])):
        save(tmp_path / f"part{number}{suffix}", part)
    (tmp_path / "notes.json").write_text("{}")
    np.testing.assert_array_equal(open_activations(tmp_path).slice(0, 99), X)


def test_images_are_counted_through_a_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES[:1])
    np.save(tmp_path / "b.npy", IMAGES[1:])
    activations = open_activations(tmp_path)
    assert activations.documents is not None and activations.documents.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_folder_of_several_kinds_or_widths_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :3])
    with pytest.raises(ValueError, match="b.npy is 3 wide, a.npy 4; keep arrays of one hook in a folder"):
        open_activations(tmp_path)
    np.savez(tmp_path / "c.npz", X)
    with pytest.raises(ValueError, match="and .npy and .npz arrays, expected those of one kind"):
        open_activations(tmp_path)


def test_ids_beside_the_rows_are_kept(tmp_path: Path) -> None:
    ids: dict[str, Any] = {"tokens": np.arange(12, dtype=np.uint16), "documents": np.arange(12) // 5}
    np.savez(tmp_path / "x.npz", activations=X, **ids)
    torch.save({"activations": torch.from_numpy(X.copy()), "documents": torch.arange(12) // 5}, tmp_path / "x.pt")
    for name in ("x.npz", "x.pt"):
        activations = open_activations(tmp_path / name)
        assert activations.documents is not None and activations.documents.dtype == np.int32
        np.testing.assert_array_equal(activations.documents, ids["documents"])
    tokens = open_activations(tmp_path / "x.npz").tokens
    assert tokens is not None and tokens.tolist() == list(range(12))
    np.savez(tmp_path / "x.npz", activations=X, documents=np.arange(12) + (1 << 31))
    with pytest.raises(ValueError, match="documents holds numbers beyond int32"):
        open_activations(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(4),
        np.zeros((2, 4), int),
        np.zeros((2, 4), np.uint16),
        np.zeros((2, 4), bool),
        np.zeros((2, 4), complex),
    ],
)
@pytest.mark.parametrize("save", [np.save, lambda path, x: np.savez(path, activations=x)])
def test_numbers_of_another_kind_are_refused(tmp_path: Path, x: NDArray[Any], save: Save) -> None:
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, x)
    with pytest.raises(ValueError, match="expected floating-point numbers of shape"):
        open_activations(path)


def test_integers_and_objects_of_torch_are_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(2, 4, dtype=torch.int64), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="expected floating-point numbers of shape"):
        open_activations(tmp_path / "x.pt")
    torch.save({"x": torch.zeros(2, 4), "path": Path("a")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds pickled objects, which could run anything and are not loaded"):
        open_activations(tmp_path / "x.pt")
    torch.save([torch.zeros(2, 4)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds a list without tensors; save a tensor or a dict of tensors"):
        open_activations(tmp_path / "x.pt")
    torch.save({"a": torch.zeros(2, 4), "b": torch.zeros(2, 4)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds 2 arrays of two or more axes, expected one"):
        open_activations(tmp_path / "x.pt")


def test_objects_in_an_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", activations=X, labels=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="x.npz is not a whole .npz file .*save it again"):
        open_activations(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npz", "packed.npz", "x.pt", "x.npy"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    SAVERS[name](tmp_path / name, X)
    whole = (tmp_path / name).read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole[:-30]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} is not a (whole|sound) .*again"):
            open_activations(tmp_path / name)


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        with archive.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 4)})
            file.write(bytes(64))
    with pytest.raises(ValueError, match="x.npy does not hold the numbers that its header says"):
        open_activations(tmp_path / "x.npz")


def test_an_npz_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", np.zeros((1 << 22, 5), np.float32))
    with pytest.raises(ValueError, match="x.npz is not a whole .npz file .it would unpack from"):
        read_arrays(tmp_path / "x.npz")
