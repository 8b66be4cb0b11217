from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_witness
from conftest import D_IN, make_weights, run_graph
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from sae_runtime.exports import witness

BundleOf = Callable[..., Path]


def some_features(n: int, w: int, d_sae: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(4)
    indices = np.stack([rng.choice(d_sae, w, replace=False) for _ in range(n)]) if n else np.zeros((0, w), np.int64)
    return indices.astype(np.int64), rng.gamma(2.0, 1.0, (n, w)).astype(np.float32)


@pytest.mark.parametrize("w", [0, 1, 6])
@pytest.mark.parametrize("n", [0, 1, 7, 300])
@pytest.mark.parametrize("d_sae", [150, 1500])
def test_decoding_agrees_in_torch_numpy_and_onnxruntime(
    bundle_of: BundleOf, kind: str, d_sae: int, n: int, w: int
) -> None:
    indices, values = some_features(n, w, d_sae)
    (x_hat,) = run_graph(bundle_of(kind, d_sae), "decode.onnx", indices=indices, values=values)
    assert x_hat.dtype == np.float32 and x_hat.shape == (n, D_IN)
    weights = make_weights(d_sae, kind)
    expected = witness.decode(weights, indices, values)
    assert witness.difference(expected, x_hat) is None
    f = torch_witness.double(np.zeros((n, d_sae))).scatter(
        1, torch_witness.whole(indices), torch_witness.double(values)
    )
    torch_witness.assert_close(x_hat, torch_witness.decode(weights, f))
    np.testing.assert_allclose(expected, torch_witness.decode(weights, f).numpy(), rtol=1e-12, atol=1e-12)


def test_unused_slots_add_nothing_to_the_reconstruction(bundle_of: BundleOf, kind: str) -> None:
    indices, values = some_features(7, 6, 150)
    (x_hat,) = run_graph(bundle_of(kind), "decode.onnx", indices=indices, values=values)
    wider = ((0, 0), (0, 3))
    (found,) = run_graph(bundle_of(kind), "decode.onnx", indices=np.pad(indices, wider), values=np.pad(values, wider))
    np.testing.assert_array_equal(found, x_hat)
    (bias,) = run_graph(bundle_of(kind), "decode.onnx", indices=indices, values=values * 0)
    np.testing.assert_array_equal(bias, np.tile(make_weights(150, kind)["b_dec"], (7, 1)))


@pytest.mark.parametrize("bad", [-1, 150, 2**40, -(2**63), 2**63 - 1])
def test_an_unknown_feature_gives_nan_in_its_row_only(bundle_of: BundleOf, kind: str, bad: int) -> None:
    indices, values = some_features(7, 6, 150)
    (x_hat,) = run_graph(bundle_of(kind), "decode.onnx", indices=indices, values=values)
    indices[2, 4] = bad
    (found,) = run_graph(bundle_of(kind), "decode.onnx", indices=indices, values=values)
    assert np.isnan(found[2]).all()
    others = np.arange(7) != 2
    np.testing.assert_array_equal(found[others], x_hat[others])


def test_decoding_agrees_with_the_reference_evaluator(bundle_of: BundleOf, kind: str) -> None:
    indices, values = some_features(7, 6, 150)
    feed = {"indices": indices, "values": values}
    outputs: Any = ReferenceEvaluator(str(bundle_of(kind) / "decode.onnx")).run(None, feed)
    assert witness.difference(witness.decode(make_weights(150, kind), indices, values), outputs[0]) is None


def test_the_witness_notices_other_values(bundle_of: BundleOf, kind: str) -> None:
    indices, values = some_features(7, 6, 150)
    (x_hat,) = run_graph(bundle_of(kind), "decode.onnx", indices=indices, values=values)
    other = witness.decode(make_weights(150, kind), indices, values * np.float32(1.001))
    assert "difference of" in (witness.difference(other, x_hat) or "")
