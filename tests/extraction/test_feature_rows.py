from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import make_x

from sae_runtime import Features, open_activations
from sae_runtime.extraction.feature_rows import feature_rows


def features(values: list[float]) -> Features:
    """The features of two tokens, the first without any."""
    numbers = np.array(values, np.float32)
    return Features(np.array([0, 0, len(values)]), np.arange(len(values), dtype=np.int32), numbers, 150, (2,))


def test_float16_keeps_the_smallest_match_above_zero_and_refuses_the_too_large(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", make_x(10))
    activations = open_activations(tmp_path / "x.npy")
    values = feature_rows(activations, 4, features([1e-12, 6e-8, 65504.0])).values("float16")
    assert values.dtype == np.float16
    assert (values > 0).all() and values[2] == 65504
    with pytest.raises(ValueError, match="row 5 has a value of 65505, too large for float16"):
        feature_rows(activations, 4, features([65505.0])).values("float16")


def test_rows_have_the_origins_that_the_activations_know(tmp_path: Path) -> None:
    ids = np.arange(10, dtype=np.int32)
    tensors = {"activations": make_x(10), "tokens": 7 * ids, "documents": ids // 3, "positions": ids % 3}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    np.save(tmp_path / "x.npy", make_x(10))
    rows = feature_rows(open_activations(tmp_path / "x.safetensors"), 4, features([1.0]))
    assert (rows.begin, rows.end) == (4, 6) and rows.tokens is not None
    assert [array.tolist() for array in (rows.documents, rows.positions, rows.tokens)] == [[1, 1], [1, 2], [28, 35]]
    rows = feature_rows(open_activations(tmp_path / "x.npy"), 4, features([1.0]))
    assert [array.tolist() for array in (rows.documents, rows.positions)] == [[0, 0], [4, 5]] and rows.tokens is None
