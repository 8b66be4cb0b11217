from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_witness
from conftest import QUOTA, K, make_tied_weights, make_tied_x, make_weights, make_x, run_graph
from conftest import joint as joint_by_numpy
from numpy.typing import NDArray
from numpy_block import run_numpy
from onnx.reference import ReferenceEvaluator

from sae_runtime.bundle import quota
from sae_runtime.exports import witness
from sae_runtime.exports.graphs import joint

BundleOf = Callable[..., Path]


@pytest.fixture(params=["mutual", "feature"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by_torch(
    kind: str,
    weights: torch_witness.Weights,
    x: NDArray[np.float32],
    *,
    k: float = K,
    valid: NDArray[np.bool_] | None = None,
    max_density: NDArray[np.float64] | None = None,
) -> torch_witness.Sparse:
    z = torch_witness.pre_activations(weights, x)
    if kind == "mutual":
        return torch_witness.mutual(z, k, valid)
    return torch_witness.feature(
        z, k, quota.max_densities(QUOTA, K, z.shape[1]) if max_density is None else max_density, valid
    )


@pytest.mark.parametrize("n", [0, 1, 7, 300])
@pytest.mark.parametrize("d_sae", [150, 1500])  # one column group of feature choice ends at 64, one at 1,024
def test_the_batch_rule_agrees_in_torch_numpy_and_onnxruntime(
    bundle_of: BundleOf, kind: str, d_sae: int, n: int
) -> None:
    x = make_x(n)
    indices, values = run_graph(bundle_of(kind, d_sae), "encode_joint.onnx", x=x)
    expected = joint_by_numpy(kind, d_sae, x)
    assert witness.disagreement(expected, indices, values) is None
    f, cuts = by_torch(kind, make_weights(d_sae, kind), x)
    found = torch_witness.dense([indices, values], d_sae)
    torch_witness.assert_same_features(found, (f, cuts))
    np.testing.assert_allclose(np.where(expected.kept, expected.z, 0), f.numpy(), rtol=1e-12, atol=1e-12)
    if kind == "mutual":
        assert (found > 0).sum() == K * n
    else:
        assert ((found > 0).sum(axis=0) <= quota.tokens_per_feature(quota.max_densities(QUOTA, K, d_sae), n)).all()
        assert n < 300 or ((found > 0) != (by_torch("mutual", make_weights(d_sae, kind), x)[0].numpy() > 0)).any()


@pytest.mark.parametrize("n", [0, 1, 7, 300])
@pytest.mark.parametrize("d_sae", [150, 1500])
def test_the_batch_rule_is_the_numpy_of_its_docstring(bundle_of: BundleOf, kind: str, d_sae: int, n: int) -> None:
    x, weights = make_x(n), make_weights(d_sae, kind)
    z = np.maximum((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    limit = None if kind == "mutual" else np.rint(quota.max_densities(QUOTA, K, d_sae) * n).astype(np.int64)
    outputs = run_graph(bundle_of(kind, d_sae), "encode_joint.onnx", x=x)
    expected = run_numpy(joint, z=z, total=K * n, limit=limit, n=n, d_sae=d_sae)
    np.testing.assert_array_equal(outputs[0], expected["indices"])
    np.testing.assert_allclose(outputs[1], expected["values"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [0.5, 2.5, 20.0])
@pytest.mark.parametrize("n", [1, 7, 300])
def test_the_batch_rule_takes_k_as_an_input(bundle_of: BundleOf, kind: str, n: int, k: float) -> None:
    x = make_x(n)
    outputs = run_graph(bundle_of(kind), "encode_joint.onnx", x=x, k=np.array(k))
    found = torch_witness.dense(outputs, 150)
    torch_witness.assert_same_features(found, by_torch(kind, make_weights(150, kind), x, k=k))
    if kind == "mutual":
        assert (found > 0).sum() == round(k * n)


def test_the_batch_rule_keeps_all_positives_where_k_is_large(bundle_of: BundleOf) -> None:
    x, weights = make_x(7), make_weights(150, "mutual")
    found = torch_witness.dense(run_graph(bundle_of("mutual"), "encode_joint.onnx", x=x, k=np.array(1e6)), 150)
    np.testing.assert_array_equal(found > 0, torch_witness.pre_activations(weights, x).numpy() > 0)
    ones = np.ones(150)
    outputs = run_graph(bundle_of("feature"), "encode_joint.onnx", x=x, k=np.array(150.0), max_density=ones)
    positive = torch_witness.pre_activations(make_weights(150, "feature"), x).numpy() > 0
    np.testing.assert_array_equal(torch_witness.dense(outputs, 150) > 0, positive)


@pytest.mark.parametrize("d_sae", [150, 1500])
def test_the_batch_rule_takes_densities_in_any_order(bundle_of: BundleOf, d_sae: int) -> None:
    rng = np.random.default_rng(3)
    x, max_density = make_x(40), rng.permutation(np.concatenate([[0.0, 1.0], rng.uniform(0, 0.2, d_sae - 2)]))
    found = torch_witness.dense(
        run_graph(bundle_of("feature", d_sae), "encode_joint.onnx", x=x, max_density=max_density), d_sae
    )
    torch_witness.assert_same_features(
        found, by_torch("feature", make_weights(d_sae, "feature"), x, max_density=max_density)
    )
    assert ((found > 0).sum(axis=0) <= np.rint(max_density * 40)).all() and found.any()
    nothing = run_graph(bundle_of("feature", d_sae), "encode_joint.onnx", x=x, max_density=np.zeros(d_sae))[1]
    assert nothing.shape == (40, 1) and not nothing.any()


@pytest.mark.parametrize("d_sae", [K, 64, 65, 1024, 1025])
def test_the_batch_rule_is_right_for_column_groups_of_any_size(bundle_of: BundleOf, d_sae: int) -> None:
    x = make_x(30)
    found = torch_witness.dense(run_graph(bundle_of("feature", d_sae, d_sae), "encode_joint.onnx", x=x), d_sae)
    torch_witness.assert_same_features(found, by_torch("feature", make_weights(d_sae, "feature"), x))
    assert found.any()


def test_the_batch_rule_is_right_for_zeros_and_the_bias(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(7)
    x[1], x[2] = 0, make_weights(150, kind)["b_dec"]
    found = torch_witness.dense(run_graph(bundle_of(kind), "encode_joint.onnx", x=x, k=np.array(40.0)), 150)
    torch_witness.assert_same_features(found, by_torch(kind, make_weights(150, kind), x, k=40))
    still = np.zeros((5, x.shape[1]), np.float32)
    found = torch_witness.dense(run_graph(bundle_of(kind), "encode_joint.onnx", x=still), 150)
    torch_witness.assert_same_features(found.sum(axis=0)[None], _summed(by_torch(kind, make_weights(150, kind), still)))


def _summed(sparse: torch_witness.Sparse) -> torch_witness.Sparse:
    """Features summed over equal rows: a feature may go to any of them, but its total is fixed."""
    return sparse[0].sum(0, keepdim=True), [cut.reshape(-1)[:1] for cut in sparse[1]]


@pytest.mark.parametrize("d_sae", [150, 1500])
@pytest.mark.parametrize("k", [0.5, 6.0, 30.0])
def test_the_batch_rule_gives_the_right_counts_and_values_for_ties(
    bundle_of: BundleOf, kind: str, d_sae: int, k: float
) -> None:
    x, weights = make_tied_x(60), make_tied_weights(d_sae, kind)
    path = bundle_of(kind, d_sae, tied=True)
    found = torch_witness.dense(run_graph(path, "encode_joint.onnx", x=x, k=np.array(k)), d_sae)
    z = torch_witness.pre_activations(weights, x).numpy()
    f = by_torch(kind, weights, x, k=k)[0].numpy()
    cut = f[f > 0].min()
    assert kind == "feature" or (z >= cut).sum() > (f > 0).sum(), "no ties at the cut"
    assert ((found == 0) | (found == z)).all()
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(f, axis=None))
    if kind == "feature":
        limit = quota.tokens_per_feature(quota.max_densities(QUOTA, K, d_sae), 60)
        assert ((found > 0).sum(axis=0) <= limit).all()
        assert ((z > 0).sum(axis=0) > limit).any(), "no limit of a feature is reached"


@pytest.mark.parametrize("padding", [0.0, 50.0, np.nan, np.inf])
def test_padding_changes_nothing_in_the_batch_rule(bundle_of: BundleOf, kind: str, padding: float) -> None:
    x, valid = make_x(30), np.arange(30) % 4 != 1
    alone = run_graph(bundle_of(kind), "encode_joint.onnx", x=x[valid])
    x[~valid] = padding
    indices, values = run_graph(bundle_of(kind), "encode_joint.onnx", x=x, valid=valid)
    np.testing.assert_array_equal(indices[valid], alone[0])
    np.testing.assert_array_equal(values[valid], alone[1])
    assert not values[~valid].any()
    found = torch_witness.dense([indices, values], 150)
    finite = np.where(valid[:, None], x, 0)
    torch_witness.assert_same_features(found, by_torch(kind, make_weights(150, kind), finite, valid=valid))


def test_one_valid_flag_applies_to_all_rows(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(7)
    default = run_graph(bundle_of(kind), "encode_joint.onnx", x=x)
    for found, expected in zip(
        run_graph(bundle_of(kind), "encode_joint.onnx", x=x, valid=np.array([True])), default, strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert not run_graph(bundle_of(kind), "encode_joint.onnx", x=x, valid=np.array([False]))[1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_a_bad_row_is_nan_and_takes_nothing_from_the_others(bundle_of: BundleOf, kind: str, bad: float) -> None:
    x, others = make_x(30), np.arange(30) != 3
    z = torch_witness.pre_activations(make_weights(150, kind), x) * torch_witness.double(others)[:, None]
    # The row still counts as a token; it only matches nothing.
    max_density = quota.max_densities(QUOTA, K, 150)
    expected = torch_witness.mutual(z, K) if kind == "mutual" else torch_witness.feature(z, K, max_density)
    # The largest float32 everywhere is finite, but its pre-activations are not.
    x[3] = bad * np.sign(x[3]) if np.isfinite(bad) else x[3]
    x[3, 5] = bad
    indices, values = run_graph(bundle_of(kind), "encode_joint.onnx", x=x)
    assert np.isnan(values[3]).all()
    values[3] = 0
    torch_witness.assert_same_features(torch_witness.dense([indices, values], 150), expected)


def test_other_tokens_change_the_batch_rule(bundle_of: BundleOf, kind: str) -> None:
    """Why its graph is recorded as not row-independent."""
    x = make_x(7)
    together = torch_witness.dense(run_graph(bundle_of(kind), "encode_joint.onnx", x=x), 150)
    alone = torch_witness.dense(run_graph(bundle_of(kind), "encode_joint.onnx", x=x[:1]), 150)
    assert (together[:1] != alone).any()


def test_the_batch_rule_agrees_with_the_reference_evaluator(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(7)
    feed = {"x": x, "valid": np.arange(7) != 2, "k": np.array(3.5)}
    if kind == "feature":
        feed["max_density"] = quota.max_densities(QUOTA, K, 150)
    outputs: Any = ReferenceEvaluator(str(bundle_of(kind) / "encode_joint.onnx")).run(None, feed)
    expected = by_torch(kind, make_weights(150, kind), x, k=3.5, valid=feed["valid"])
    torch_witness.assert_same_features(torch_witness.dense(outputs, 150), expected)
