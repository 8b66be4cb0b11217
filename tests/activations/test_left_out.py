"""The rule for rows of massive norm, against numpy in float64."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_manifest
from numpy.typing import NDArray
from safetensors.torch import save_file

from sae_runtime.activations import left_out
from sae_runtime.activations.left_out import MAX_NORM, kept_rows, norms, rule_for, shared_out, warn_of_many
from sae_runtime.activations.stored import Activations, Shard, open_activations
from sae_runtime.bundle.manifest import LeftOut
from sae_runtime.train.config import TrainConfig


def rows(n: int = 400, d_in: int = 6, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d_in)).astype(np.float32)


def given(x: NDArray[np.float32]) -> Activations:
    return Activations(Path("x"), [Shard(x)])


def beside(x: NDArray[np.float32], at: list[int], ratio: float) -> NDArray[np.float32]:
    """A copy in which some rows have a norm of `ratio` times the median."""
    size = np.linalg.norm(x.astype(np.float64), axis=1)
    y = x.copy()
    y[at] *= (ratio * np.median(size) / size[at])[:, None]
    return y


@pytest.mark.parametrize("ratio", [11.0, 12.0, 50.0, 3e4, 1e30])
def test_rows_above_the_limit_are_left_out_and_no_others(ratio: float) -> None:
    kept = kept_rows(given(beside(rows(), [0, 17, 399], ratio)), 10.0)
    assert np.flatnonzero(~kept).tolist() == [0, 17, 399]
    assert kept_rows(given(beside(rows(), [0, 17], 9.0)), 10.0).all()


def test_norms_are_those_of_float64_where_squares_overflow_float32() -> None:
    x = np.array([[3e30, 4e30], [3e-30, 4e-30], [0, 0]], np.float32)
    np.testing.assert_allclose(norms(x), np.linalg.norm(x.astype(np.float64), axis=1), rtol=1e-15)


def test_blocks_of_a_file_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x = beside(rows(), [3, 250], 40.0)
    np.save(tmp_path / "x.npy", x)
    found = kept_rows(open_activations(tmp_path / "x.npy"), 10.0)
    monkeypatch.setattr(left_out, "_ELEMENTS", 7 * 6)
    assert np.array_equal(kept_rows(open_activations(tmp_path / "x.npy"), 10.0), found)
    many = Activations(Path("x"), [Shard(part) for part in np.array_split(x, 5)])
    assert np.array_equal(kept_rows(many, 10.0), found) and (~found).sum() == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_narrow_types_have_the_same_rule(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.from_numpy(beside(rows(), [5, 6], 600.0)).to(dtype)
    save_file({"activations": x}, tmp_path / "x.safetensors")
    size = x.double().norm(dim=1).numpy()
    kept = kept_rows(open_activations(tmp_path / "x.safetensors"), 10.0)
    assert np.array_equal(kept, size <= 10 * np.median(size)) and (~kept).sum() == 2


def test_zero_rows_do_not_move_the_median() -> None:
    x = np.zeros((100, 4), np.float32)
    x[:10] = rows(10, 4)
    assert kept_rows(given(x), 10.0).all(), "the ten rows are ordinary"
    assert kept_rows(given(np.zeros((5, 4), np.float32)), 10.0).all()


def test_equal_norms_and_no_limit_keep_all() -> None:
    assert kept_rows(given(np.ones((9, 3), np.float32)), 1.0).all()
    assert kept_rows(given(beside(rows(), [1], 1e6)), None).all()


def test_one_number_a_row_has_the_same_rule() -> None:
    x = np.ones((50, 1), np.float32)
    x[7] = -11
    assert np.flatnonzero(~kept_rows(given(x), 10.0)).tolist() == [7]


def test_no_limit_reads_no_row_and_a_limit_finds_nan_early() -> None:
    x = rows()
    x[31, 2] = np.nan
    with pytest.raises(ValueError, match="x: row 31 holds NaN or Inf"):
        kept_rows(given(x), 10.0)
    assert kept_rows(given(x), None).all()


def test_a_left_out_row_belongs_to_the_part_of_its_neighbour_in_the_text() -> None:
    kept = np.ones(9, np.bool_)
    kept[[0, 4, 8]] = False  # a first token, the last one of a document, and the last of all
    parts = [np.array([1, 2, 3]), np.array([6, 7])]  # 5 is in a gap
    documents = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], np.int32)
    assert [part.tolist() for part in shared_out(kept, parts, documents)] == [[0, 4], [8]]
    assert [part.tolist() for part in shared_out(kept, parts, None)] == [[0], [8]], "the neighbour of 4 is in a gap"


def test_the_bundles_rule_counts_unless_another_is_given() -> None:
    without = make_manifest(30, "token")
    own = replace(without, left_out=LeftOut(norm_multiple=25.0))
    off = replace(without, left_out=LeftOut(rows={"train": 0}))
    converted = replace(without, left_out=LeftOut(first_positions=1))
    assert [rule_for(each) for each in (without, own, off, converted)] == [10.0, 25.0, None, 10.0]
    assert [rule_for(each, 7.0) for each in (without, own, off)] == [7.0, 7.0, 7.0]
    assert rule_for(own, math.inf) is None
    for wrong in (0.0, 0.99, -3.0, math.nan):
        with pytest.raises(ValueError, match=r"max_norm must be at least 1 times the median norm, got"):
            rule_for(own, wrong)


def test_training_has_the_same_default_and_the_same_limits() -> None:
    assert TrainConfig(tokens=4096).max_norm == MAX_NORM
    assert TrainConfig(tokens=4096, max_norm=math.inf).max_norm is None
    for wrong in (0.5, math.nan):
        with pytest.raises(ValueError, match="max_norm must be at least 1, got"):
            TrainConfig(tokens=4096, max_norm=wrong)


def test_many_left_out_rows_are_warned_of() -> None:
    warn_of_many(0.05, 10.0, Path("acts"))
    with pytest.warns(left_out.ManyRowsLeftOut, match=r"acts: 5\.1% of the rows .* --max-norm none"):
        warn_of_many(0.051, 10.0, Path("acts"))
