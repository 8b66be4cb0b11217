import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from sae_runtime import open_activations
from sae_runtime.activations.documents import Source
from sae_runtime.activations.stored import FORMAT_VERSION, INDEX, PLAN
from sae_runtime.core.arrays import as_float32, first_nonfinite

X = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


def shard_file(path: Path, x: NDArray[Any], start: int = 0) -> None:
    """One shard as harvest writes it. bfloat16 is written here, since safetensors.numpy does not support it."""
    ids = {name: np.arange(start, start + len(x), dtype=np.int32) + 100 * i for i, name in enumerate(IDS)}
    if x.dtype.name != "bfloat16":
        safetensors.numpy.save_file({"activations": x, **ids}, path)
        return
    header, at, blobs = {}, 0, [("activations", "BF16", x), *((n, "I32", array) for n, array in ids.items())]
    for name, dtype, array in blobs:
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(array.tobytes() for _, _, array in blobs))


IDS = ("tokens", "documents", "positions")


def harvest(path: Path, x: NDArray[Any] = X, sizes: tuple[int, ...] = (3, 1, 6), **index: Any) -> Path:
    """A folder of shards as harvest writes it."""
    path.mkdir()
    bounds = np.cumsum([0, *sizes])
    shards = []
    for number, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        shard_file(path / f"{number}.safetensors", x[begin:end], int(begin))
        shards.append({"file": f"{number}.safetensors", "rows": int(end - begin)})
    whole = {"format_version": FORMAT_VERSION, "shards": shards, "d_in": x.shape[1], "model": "m", "hook": "h"}
    (path / INDEX).write_text(json.dumps(whole | index))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_a_folder_of_shards_gives_its_rows_and_their_ids(tmp_path: Path, dtype: Any) -> None:
    stored = X.astype(dtype)
    activations = open_activations(harvest(tmp_path / "a", stored))
    expected = stored.astype(np.float32)
    assert len(activations) == 10 and activations.d_in == 4 and (activations.model, activations.hook) == ("m", "h")
    for begin in range(11):
        for end in (begin, 4, 10, 99):
            part = activations.slice(begin, end)
            assert part.dtype == np.float32
            np.testing.assert_array_equal(part, expected[begin:end])
    ids = np.array([9, 0, 3, 3, 2, 7])
    np.testing.assert_array_equal(activations.rows(ids), expected[ids])
    assert activations.rows(np.empty(0, np.int64)).shape == (0, 4)
    for number, name in enumerate(IDS):
        assert getattr(activations, name).tolist() == list(range(100 * number, 100 * number + 10))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_npy_file_gives_its_rows_as_float32(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(X.astype(dtype)))
    activations = open_activations(str(tmp_path / "x.npy"))
    np.testing.assert_array_equal(activations.slice(2, 7), X.astype(dtype).astype(np.float32)[2:7])
    assert [activations.tokens, activations.documents, activations.positions, activations.hook] == [None] * 4


def test_a_safetensors_file_gives_its_only_matrix_or_the_one_named_activations(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"any name": X, "a vector": np.zeros(3)}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(open_activations(tmp_path / "x.safetensors").slice(0, 10), X)
    safetensors.numpy.save_file({"other": X + 1, "activations": X}, tmp_path / "y.safetensors")
    np.testing.assert_array_equal(open_activations(tmp_path / "y.safetensors").slice(0, 10), X)
    safetensors.numpy.save_file({"a": X, "b": X}, tmp_path / "z.safetensors")
    with pytest.raises(ValueError, match="holds 2 arrays of two or more axes, expected one, or one 'activations'"):
        open_activations(tmp_path / "z.safetensors")


@pytest.mark.parametrize("ids", [[0, 10], [-1], [3, 2**40]])
def test_rows_that_do_not_exist_are_refused(tmp_path: Path, ids: list[int]) -> None:
    activations = open_activations(harvest(tmp_path / "a"))
    with pytest.raises(IndexError, match=rf"has rows 0 to 9, asked for {min(ids)} to {max(ids)}"):
        activations.rows(np.array(ids))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_row_is_named_by_its_number_in_the_whole(tmp_path: Path, bad: float) -> None:
    x = X.copy()
    x[7, 2] = bad
    activations = open_activations(harvest(tmp_path / "a", x))
    with pytest.raises(ValueError, match="row 7 holds NaN or Inf; harvest it again or drop the row"):
        activations.slice(5, 10)
    with pytest.raises(ValueError, match="row 7 holds NaN or Inf"):
        activations.rows(np.array([9, 7, 0]))
    np.testing.assert_array_equal(activations.slice(0, 7), X[:7])


def test_paths_without_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="does not exist; expected a folder of harvest, or one of .npy, .npz, .saf"
    ):
        open_activations(tmp_path / "nowhere")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"expected a folder of harvest, or one of .npy, .*, got .csv"):
        open_activations(tmp_path / "x.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"holds no {INDEX} and no arrays, expected those of one kind"):
        open_activations(tmp_path / "folder")
    (tmp_path / "folder" / PLAN).write_text("{}")
    np.save(tmp_path / "folder" / "x.npy", X)
    with pytest.raises(ValueError, match=f"holds no {INDEX}: not harvested to the end; run the same harvest again"):
        open_activations(tmp_path / "folder")


@pytest.mark.parametrize(
    "array", [np.zeros(4), np.zeros((2, 3, 0)), np.zeros((2, 0)), np.zeros((2, 4), int), np.zeros((2, 4), complex)]
)
def test_arrays_of_another_type_or_shape_are_refused(tmp_path: Path, array: NDArray[Any]) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=r"expected floating-point numbers of shape \[n, d_in\]"):
        open_activations(tmp_path / "x.npy")


def test_sources_stand_in_a_file_of_the_size_that_the_index_says(tmp_path: Path) -> None:
    line = '{"document": 4, "file": "a.csv", "row": 7, "id": null}\n'
    path = harvest(tmp_path / "a", sources={"file": "documents.jsonl", "bytes": len(line)})
    with pytest.raises(ValueError, match="a lacks its file documents.jsonl; harvest again"):
        open_activations(path)
    (path / "documents.jsonl").write_text(line)
    assert list(open_activations(path).sources()) == [(4, Source("a.csv", 7))]
    (path / "documents.jsonl").write_text(line[:-2])
    with pytest.raises(ValueError, match="documents.jsonl has another size than activations.json says; harvest again"):
        open_activations(path)
    (path / "documents.jsonl").write_text("x" * len(line))
    with pytest.raises(ValueError, match="documents.jsonl, line 1 is not readable JSON"):
        list(open_activations(path).sources())


def test_damaged_files_of_activations_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    whole = (tmp_path / "x.npy").read_bytes()
    for size in (0, 5, 40, len(whole) - 1):
        (tmp_path / "x.npy").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a whole .npy file"):
            open_activations(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is not a whole .npy file"):
        open_activations(tmp_path / "x.npy")
    safetensors.numpy.save_file({"x": X}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated; copy it again"):
        open_activations(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"format_version": 2}, f"has format version 2, this sae-runtime reads {FORMAT_VERSION}"),
        ({"shards": [{"file": "nowhere.safetensors", "rows": 3}]}, "lacks the shard nowhere.safetensors"),
        ({"shards": [{"file": "../b/0.safetensors", "rows": 3}]}, "lacks the shard ../b/0.safetensors"),
        ({"shards": [{"file": "0.safetensors", "rows": 4}]}, r"is \[3, 4\], activations.json says \[4, 4\]"),
        ({"d_in": 5}, r"is \[3, 4\], activations.json says \[3, 5\]"),
        (
            {"shards": [{"file": "0.safetensors"}]},
            r"json: index.shards\[0\] must have the fields file, rows, rows is missing; harvest again",
        ),
        ({"shards": 3}, "index.shards must be a list, got 3; harvest again"),
        ({"shards": []}, "holds no rows; harvest more text"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path, index: dict[str, Any], message: str) -> None:
    harvest(tmp_path / "b")
    with pytest.raises(ValueError, match=message):
        open_activations(harvest(tmp_path / "a", **index))


def test_an_index_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (harvest(tmp_path / "a") / INDEX).write_text("{")
    with pytest.raises(ValueError, match="is not readable.*; harvest again"):
        open_activations(tmp_path / "a")


def test_ids_that_do_not_fit_their_rows_are_refused(tmp_path: Path) -> None:
    path = harvest(tmp_path / "a")
    tensors = {"activations": X[:3], "tokens": np.zeros(2, np.int32)}
    safetensors.numpy.save_file(tensors, path / "0.safetensors")
    with pytest.raises(ValueError, match=r"tokens must be whole numbers \[3\], got int32 \[2\]; harvest again"):
        open_activations(path)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int8", "uint64", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (0, 4), (2, 1, 3)])
def test_as_float32_casts_once_and_keeps_the_shape(dtype: Any, shape: tuple[int, ...]) -> None:
    x = (np.random.default_rng(1).standard_normal(shape) * 50 + 60).astype(dtype)
    found = as_float32(x)
    assert found.dtype == np.float32 and found.shape == shape and found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.asarray(x).astype(np.float32))


def test_as_float32_does_not_copy_contiguous_float32() -> None:
    assert as_float32(X) is X or np.shares_memory(as_float32(X), X)
    assert as_float32(X.T).flags.c_contiguous
    np.testing.assert_array_equal(as_float32([[1, 2], [3, 4.5]]), np.array([[1, 2], [3, 4.5]], np.float32))


@pytest.mark.parametrize("x", [np.zeros(3, complex), np.zeros(3, bool), np.array(["a"]), np.array([None])])
def test_as_float32_refuses_values_that_are_not_real_numbers(x: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=f"activations must be real numbers, got {x.dtype}; convert them to float32"):
        as_float32(x)


def test_first_nonfinite_gives_the_first_row_that_is_not_finite() -> None:
    x = np.zeros((5, 3), np.float32)
    assert first_nonfinite(x) is None and first_nonfinite(x[:0]) is None
    x[1] = 3e38  # finite values with a sum that overflows
    assert first_nonfinite(x) is None
    x[4, 0], x[3] = np.nan, [np.inf, -np.inf, 0]
    assert first_nonfinite(x) == 3
