import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse
from conftest import D_IN, make_x

from sae_runtime import SAE, load, open_activations
from sae_runtime.bundle import WEIGHTS
from sae_runtime.extract import extract


@pytest.mark.parametrize("rule", ["served", "batch"])
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_scipy_opens_what_encode_gives(sae: SAE, tmp_path: Path, rule: Literal["served", "batch"], n: int) -> None:
    x = make_x(n)
    np.save(tmp_path / "x.npy", x)
    made = extract(sae, open_activations(tmp_path / "x.npy"), tmp_path / "f.npz", format="csr", rule=rule)
    matrix = scipy.sparse.load_npz(tmp_path / "f.npz")
    assert matrix.shape == (n, 150) and matrix.has_canonical_format
    expected = sae.encode_batch(x) if rule == "batch" else sae.encode(x)
    assert (made.tokens, made.matches, matrix.nnz) == (n, len(expected.values), len(expected.values))
    assert (matrix != expected.to_scipy()).nnz == 0
    assert matrix.dtype == np.float32 and isinstance(matrix, scipy.sparse.csr_array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "x.npy"]


def test_arrays_beside_the_matrix(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    ids = np.arange(5000, dtype=np.int32)
    tensors = {"activations": make_x(5000), "tokens": 7 * ids, "documents": ids // 50, "positions": ids % 50}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    sae = load(bundle_of("mutual"))
    extract(sae, open_activations(tmp_path / "x.safetensors"), tmp_path / "f.npz", format="csr")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        for name, expected in (("doc", "documents"), ("pos", "positions"), ("token", "tokens")):
            np.testing.assert_array_equal(file[name], tensors[expected])
            assert file[name].dtype == np.int32
        description = json.loads(file["sae_runtime"].item())
        assert (file["indices"].dtype, file["indptr"].dtype) == (np.int32, np.int64)
    assert description["tokens"] == 5000 and description["encoder"]["d_in"] == D_IN
    assert description["weights_sha256"] == sae.manifest.files[WEIGHTS].sha256


def test_what_breaks_off_leaves_nothing(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    x = make_x(9000)
    x[8999, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="row 8999 holds NaN or Inf"):
        extract(load(bundle_of("mutual")), open_activations(tmp_path / "x.npy"), tmp_path / "f.npz", format="csr")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
