import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import no_file_beyond
from numpy.typing import NDArray

from sae_runtime.bundle.tensors import TensorSpec, all_finite, map_tensor, read_header, save_tensors
from sae_runtime.core.arrays import bfloat16_to_float32


def safetensors_file(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_saved_bytes_do_not_depend_on_the_memory_layout(tmp_path: Path) -> None:
    """safetensors.numpy writes a transposed array in the wrong order."""
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    arrays = {"turned": x.T, "steps": x[:, ::2], "scalar": np.array(2.5)}
    save_tensors(tmp_path / "t.safetensors", arrays)
    specs = read_header(tmp_path / "t.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(map_tensor(tmp_path / "t.safetensors", specs[name]), array)


def test_read_header_and_map_tensor_read_files_of_the_safetensors_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds: list[Any] = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"]
    tensors: dict[str, NDArray[Any]] = {f"t{k}": (rng.random((3, 5)) * 100).astype(k) for k in kinds}
    tensors |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(2.5), "a": np.zeros((2, 0), np.int64)}
    safetensors.numpy.save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "np"})
    specs = read_header(tmp_path / "t.safetensors")
    assert set(specs) == set(tensors)
    raw = (tmp_path / "t.safetensors").read_bytes()
    for name, array in tensors.items():
        found = map_tensor(tmp_path / "t.safetensors", specs[name])
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert raw[specs[name].offset : specs[name].offset + specs[name].size] == array.tobytes()


def test_mapped_tensors_are_read_only(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"t": np.ones(3, np.float32)}, tmp_path / "t.safetensors")
    mapped = map_tensor(tmp_path / "t.safetensors", read_header(tmp_path / "t.safetensors")["t"])
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 2


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(bfloat16_to_float32(bits), expected)
    header = {"x": entry("BF16", [256, 256], 0, 2**17)}
    path = safetensors_file(tmp_path / "t.safetensors", header, bits.tobytes())
    np.testing.assert_array_equal(bfloat16_to_float32(map_tensor(path, read_header(path)["x"])), expected)


def test_the_header_may_name_tensors_in_any_order(tmp_path: Path) -> None:
    header = {"b": entry("F32", [2], 4, 12), "a": entry("F32", [1], 0, 4), "none": entry("F32", [0], 4, 4)}
    path = safetensors_file(tmp_path / "t.safetensors", header, np.array([1, 2, 3], np.float32).tobytes())
    specs = read_header(path)
    assert specs["b"] == TensorSpec("F32", (2,), specs["a"].offset + 4, 8)
    np.testing.assert_array_equal(map_tensor(path, specs["b"]), [2, 3])


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", r"unreadable safetensors header \(.*Expecting property name"),
        (b"\xff\xfe", b"", "unreadable safetensors header"),
        (b"[" * 100_000, b"", "unreadable safetensors header"),
        ([], b"", "unreadable safetensors header"),
        ({"a": 3}, b"", "unreadable safetensors header"),
        ({"a": {"dtype": "F32"}}, b"", r"unreadable safetensors header \('shape'\)"),
        ({"a": entry("F4", [1], 0, 4)}, bytes(4), "dtype 'F4', expected one of F64, F32"),
        ({"a": entry("F32", [1.0], 0, 4)}, bytes(4), "must be whole numbers"),
        ({"a": entry("F32", [-1], 0, 4)}, bytes(4), "must be whole numbers"),
        ({"a": entry("F32", [1], -4, 0)}, bytes(4), "must be whole numbers"),
        ({"a": entry("F32", [2], 0, 4)}, bytes(4), r"shape \[2\] of F32 does not fill 4 bytes"),
        ({"a": entry("F32", [2**62, 4], 0, 4)}, bytes(4), "does not fill 4 bytes"),
        ({"a": entry("F32", [1], 4, 8)}, bytes(8), r"tensor a starts at byte \d+, expected \d+"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, bytes(8), "tensor b starts at byte"),
        ({"a": entry("F32", [1], 0, 4)}, bytes(3), "truncated"),
        ({"a": entry("F32", [1], 0, 4)}, bytes(5), "truncated"),
    ],
)
def test_read_header_refuses_sizes_that_do_not_add_up(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = safetensors_file(tmp_path / "t.safetensors", header, data)
    with pytest.raises(ValueError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and str(caught.value).endswith("; copy it again")


@pytest.mark.parametrize("raw", [b"", b"\x01", bytes(7), (9).to_bytes(8, "little") + b"{}", b"\xff" * 8 + b"{}"])
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match="is not a whole safetensors file: its header does not fit; copy it again"):
        read_header(tmp_path / "t.safetensors")


def test_any_damage_to_the_header_is_a_value_error(tmp_path: Path) -> None:
    tensors = {"W": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "t.safetensors")
    whole = (tmp_path / "t.safetensors").read_bytes()
    header, rng, refused = 8 + int.from_bytes(whole[:8], "little"), np.random.default_rng(0), 0
    for _ in range(400):
        spoilt = bytearray(whole)
        spoilt[rng.integers(header)] = rng.choice(np.frombuffer(b'\x00\xff"{}[],:019-eN', np.uint8))
        (tmp_path / "t.safetensors").write_bytes(spoilt)
        try:
            specs = read_header(tmp_path / "t.safetensors")
        except ValueError:
            refused += 1
        else:
            assert all(map_tensor(tmp_path / "t.safetensors", spec).nbytes == spec.size for spec in specs.values())
    assert refused > 200


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_streamed_files_are_byte_for_byte_those_of_the_package(tmp_path: Path, block: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)

    class InParts:
        shape = matrix.shape

        def blocks(self) -> Any:
            yield from ((slice(i, i + 2), matrix[i : i + 2]) for i in range(0, 9, 2))

    whole = {
        "W": matrix,
        "turned": np.ascontiguousarray(matrix.T),
        "b": matrix[0],
        "none": np.zeros((0, 3), np.float32),
        "flat": np.zeros((3, 0), np.int8),
        "scalar": np.array(2.5),
    }
    deep = np.arange(120, dtype=np.int32).reshape(2, 3, 4, 5)[:, ::2]
    whole |= {"deep": deep.copy()} | {
        dtype: np.arange(5).astype(dtype) for dtype in ("f8", "f2", "i8", "i4", "i2", "i1", "u1", "?", ">f4")
    }
    save_tensors(tmp_path / "ours", {**whole, "W": InParts(), "turned": matrix.T, "deep": deep}, block=block)
    assert (tmp_path / "ours").read_bytes() == safetensors.numpy.save(whole)


def test_bits_of_bfloat16_are_written_as_the_package_does(tmp_path: Path) -> None:
    x = torch.randn(5, 3).bfloat16()
    bits = x.view(torch.int16).numpy().view(np.uint16)
    save_tensors(tmp_path / "ours", {"x": bits, "i": np.arange(3)}, bfloat16={"x"})
    assert (tmp_path / "ours").read_bytes() == safetensors.torch.save({"x": x, "i": torch.arange(3)})
    with pytest.raises(TypeError, match="no tensors of complex64; give one of"):
        save_tensors(tmp_path / "ours", {"x": np.zeros(3, np.complex64)})


def test_a_full_disk_is_an_os_error_and_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    with (
        no_file_beyond(1000),
        pytest.raises(OSError, match=r"tensors cannot be written \(.+\); free space or write el"),
    ):
        save_tensors(tmp_path / "ours", {"W": np.ones((100, 100), np.float32)})
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize("shape", [(5,), (0,), (3, 40), (40, 3), (0, 3)])
def test_one_number_that_is_not_finite_is_found_and_a_sum_that_overflows_is_none(shape: tuple[int, ...]) -> None:
    largest = np.full(shape, np.finfo(np.float32).max)
    assert all_finite(largest) and all_finite(-largest)
    for place in np.ndindex(shape):
        for wrong in (np.nan, np.inf, -np.inf):
            for around in (largest, np.zeros(shape, np.float32)):
                spoilt = around.copy()
                spoilt[place] = wrong
                assert not all_finite(spoilt)
