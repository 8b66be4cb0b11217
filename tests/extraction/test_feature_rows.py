from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import make_x

from sae_runtime import Features, open_activations
from sae_runtime.extraction.feature_rows import feature_rows


def features(values: list[float]) -> Features:
    """Two tokens, of which the first has no feature."""
    numbers = np.array(values, np.float32)
    return Features(np.array([0, 0, len(values)]), np.arange(len(values), dtype=np.int32), numbers, 150, (2,))


def test_a_match_does_not_become_zero_in_float16(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", make_x(10))
    rows = feature_rows(open_activations(tmp_path / "x.npy"), 4, features([1e-12, 6e-8, 65504.0]), "float16")
    assert rows.values.dtype == np.float16
    assert (rows.values > 0).all() and rows.values[2] == 65504
    with pytest.raises(ValueError, match="row 5 has a value of 65505, too large for float16"):
        feature_rows(open_activations(tmp_path / "x.npy"), 4, features([65505.0]), "float16")


def test_origin_of_a_part(tmp_path: Path) -> None:
    ids = np.arange(10, dtype=np.int32)
    tensors = {"activations": make_x(10), "tokens": 7 * ids, "documents": ids // 3, "positions": ids % 3}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    np.save(tmp_path / "x.npy", make_x(10))
    rows = feature_rows(open_activations(tmp_path / "x.safetensors"), 4, features([1.0]), "float32")
    assert (rows.begin, rows.end) == (4, 6) and rows.tokens is not None
    assert [array.tolist() for array in (rows.documents, rows.positions, rows.tokens)] == [[1, 1], [1, 2], [28, 35]]
    rows = feature_rows(open_activations(tmp_path / "x.npy"), 4, features([1.0]), "float32")
    assert [array.tolist() for array in (rows.documents, rows.positions)] == [[0, 0], [4, 5]] and rows.tokens is None
