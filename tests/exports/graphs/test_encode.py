from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch_witness
from conftest import K, make_tied_weights, make_tied_x, make_weights, make_x, run_graph
from conftest import served as served_by_numpy
from numpy.typing import NDArray

from sae_runtime.exports import witness

BundleOf = Callable[..., Path]


def by_torch(kind: str, d_sae: int, x: NDArray[np.float32]) -> torch_witness.Sparse:
    weights = make_weights(d_sae, kind)
    z = torch_witness.pre_activations(weights, x)
    return torch_witness.token(z, K) if kind == "token" else torch_witness.threshold(z, weights["threshold"])


def all_slots(kind: str, d_sae: int) -> dict[str, NDArray[np.int64]]:
    """The input that gives a slot to every feature above its threshold."""
    return {} if kind == "token" else {"slots": np.array([d_sae])}


@pytest.mark.parametrize("n", [0, 1, 7, 300])
@pytest.mark.parametrize("d_sae", [150, 1500])
def test_encoding_agrees_in_torch_numpy_and_onnxruntime(bundle_of: BundleOf, kind: str, d_sae: int, n: int) -> None:
    x = make_x(n)
    indices, values = run_graph(bundle_of(kind, d_sae), "encode.onnx", x=x, **all_slots(kind, d_sae))
    expected = served_by_numpy(kind, d_sae, x)
    assert witness.disagreement(expected, indices, values) is None
    f, cuts = by_torch(kind, d_sae, x)
    torch_witness.assert_same_features(torch_witness.dense([indices, values], d_sae), (f, cuts))
    np.testing.assert_allclose(np.where(expected.kept, expected.z, 0), f.numpy(), rtol=1e-12, atol=1e-12)
    assert n < 7 or expected.kept.sum() > n, "hardly any match is tested"


def test_the_manifest_gives_the_default_slots(bundle_of: BundleOf, kind: str) -> None:
    indices, values = run_graph(bundle_of(kind), "encode.onnx", x=make_x(7))
    assert indices.shape == values.shape == (7, K if kind == "token" else 4 * K)


@pytest.mark.parametrize("slots", [0, 1, 5, 150, 10_000])
def test_slots_are_an_input_cut_at_d_sae(bundle_of: BundleOf, kind: str, slots: int) -> None:
    x = make_x(7)
    indices, values = run_graph(bundle_of(kind), "encode.onnx", x=x, slots=np.array([slots]))
    all_indices, all_values = run_graph(bundle_of(kind), "encode.onnx", x=x, slots=np.array([150]))
    assert values.shape == (7, min(slots, 150))
    np.testing.assert_array_equal(values, all_values[:, :slots])
    used = values > 0
    np.testing.assert_array_equal(indices[used], all_indices[:, :slots][used])


@pytest.mark.parametrize("vector", [False, True])
def test_encoding_takes_thresholds_as_an_input(bundle_of: BundleOf, vector: bool) -> None:
    x = make_x(50)
    threshold = (
        np.random.default_rng(2).uniform(0.5, 3, 150).astype(np.float32) if vector else np.array([1.1], np.float32)
    )
    for kind in ("mutual", "feature"):
        indices, values = run_graph(bundle_of(kind), "encode.onnx", x=x, threshold=threshold, slots=np.array([150]))
        z = torch_witness.pre_activations(make_weights(150, kind), x)
        expected = torch_witness.threshold(z, threshold)
        torch_witness.assert_same_features(torch_witness.dense([indices, values], 150), expected)


def test_encoding_zeros_and_the_bias_agrees_with_torch(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(4)
    x[1], x[2] = 0, make_weights(150, kind)["b_dec"]
    indices, values = run_graph(bundle_of(kind), "encode.onnx", x=x, **all_slots(kind, 150))
    torch_witness.assert_same_features(torch_witness.dense([indices, values], 150), by_torch(kind, 150, x))


@pytest.mark.parametrize("d_sae", [150, 1500])
def test_encoding_ties_gives_the_right_counts_and_values(bundle_of: BundleOf, kind: str, d_sae: int) -> None:
    x, weights = make_tied_x(60), make_tied_weights(d_sae, kind)
    path = bundle_of(kind, d_sae, tied=True)
    found = torch_witness.dense(run_graph(path, "encode.onnx", x=x, **all_slots(kind, d_sae)), d_sae)
    z = torch_witness.pre_activations(weights, x)
    if kind == "token":
        f = torch_witness.token(z, K)[0].numpy()
        cut = f.min(axis=1, initial=np.inf, where=f > 0)[:, None]
        assert ((z.numpy() >= cut).sum(axis=1) > K).any(), "no ties at the cut"
        assert ((found == 0) | (found == z.numpy())).all()
        np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(f, axis=1))
    else:
        assert (z.numpy() == weights["threshold"]).any(), "no pre-activation equals its threshold"
        np.testing.assert_array_equal(found, torch_witness.threshold(z, weights["threshold"])[0].numpy())


def test_encoding_a_row_of_nan_leaves_other_rows_unchanged(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(7)
    spoilt = x.copy()
    spoilt[3, 5] = np.nan
    indices, values = run_graph(bundle_of(kind), "encode.onnx", x=x)
    spoilt_indices, spoilt_values = run_graph(bundle_of(kind), "encode.onnx", x=spoilt)
    others = np.arange(7) != 3
    assert np.isnan(spoilt_values[3]).all()
    np.testing.assert_array_equal(spoilt_values[others], values[others])
    used = values[others] > 0
    np.testing.assert_array_equal(spoilt_indices[others][used], indices[others][used])


def test_other_weights_give_other_features(bundle_of: BundleOf, kind: str) -> None:
    """The comparison of the tests above must fail for other weights."""
    x = make_x(7)
    found = torch_witness.dense(run_graph(bundle_of(kind), "encode.onnx", x=x, **all_slots(kind, 150)), 150)
    weights = make_weights(150, kind, seed=1)
    z = torch_witness.pre_activations(weights, x)
    other = torch_witness.token(z, K) if kind == "token" else torch_witness.threshold(z, weights["threshold"])
    with pytest.raises(AssertionError, match="one side only"):
        torch_witness.assert_same_features(found, other)
