import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch_witness
from conftest import D_IN, K, make_weights, make_x, run_graph
from conftest import served as served_by_numpy
from numpy.typing import ArrayLike, NDArray
from numpy_block import run_numpy
from onnx.reference import ReferenceEvaluator

from sae_runtime.bundle.folder import DERIVED, read
from sae_runtime.bundle.tensors import read_header, save_tensors
from sae_runtime.exports import witness
from sae_runtime.exports.graphs import steer
from sae_runtime.exports.graphs.steer import steer_graph

BundleOf = Callable[..., Path]
Arrays = dict[str, NDArray[Any]]
LARGEST = float(np.finfo(np.float32).max)


def some_edits(b: int, e: int, d_sae: int, kind: str, x: NDArray[np.float32]) -> Arrays:
    """Edits of active and inactive features, different for each of the b requests."""
    rng = np.random.default_rng(7)
    busiest = np.argsort(-served_by_numpy(kind, d_sae, x.reshape(-1, D_IN)).kept.sum(axis=0))
    pool = np.unique(np.concatenate([busiest[: 2 * e], rng.integers(0, d_sae, 2 * e)]))
    features = np.stack([rng.choice(pool, e, replace=False) for _ in range(b)])
    return {
        "features": features.astype(np.int64),
        "scale": rng.uniform(-1, 2, (b, e)).astype(np.float32),
        "shift": rng.uniform(-2, 3, (b, e)).astype(np.float32),
        "low": rng.choice(np.array([-LARGEST, 0.5]), (b, e)).astype(np.float32),
        "high": rng.choice(np.array([LARGEST, 2.5]), (b, e)).astype(np.float32),
    }


def by_torch(kind: str, d_sae: int, x: NDArray[np.float32], edits: Arrays, gate: ArrayLike = 1.0) -> torch.Tensor:
    """Each token by itself, over the dense features."""
    weights = make_weights(d_sae, kind)
    out = torch.empty(x.shape, dtype=torch.float64)
    features = np.broadcast_to(edits["features"], (len(x), edits["features"].shape[1]))
    gates = np.broadcast_to(gate, (*x.shape[:2], features.shape[1]))
    numbers = {name: np.broadcast_to(edits[name], features.shape) for name in ("scale", "shift", "low", "high")}
    for request in range(len(x)):
        z = torch_witness.pre_activations(weights, x[request])
        f = (torch_witness.token(z, K) if kind == "token" else torch_witness.threshold(z, weights["threshold"]))[0]
        ids = torch_witness.whole(features[request])
        scale, shift, low, high = (torch_witness.double(numbers[name][request]) for name in numbers)
        edited = torch.minimum(torch.maximum(f[:, ids] * scale + shift, low), high)
        wanted = f.clone()
        wanted[:, ids] = torch.lerp(f[:, ids], edited, torch_witness.double(gates[request]))
        out[request] = torch_witness.steer(weights, x[request], f, wanted)
    return out


@pytest.mark.parametrize(("b", "t", "e"), [(1, 1, 1), (1, 7, 3), (3, 5, 4), (2, 150, 8), (0, 3, 2), (2, 0, 2)])
@pytest.mark.parametrize("d_sae", [150, 1500])
def test_steering_agrees_in_torch_numpy_and_onnxruntime(
    bundle_of: BundleOf, kind: str, d_sae: int, b: int, t: int, e: int
) -> None:
    x = make_x(b * t).reshape(b, t, D_IN)
    edits = some_edits(max(b, 1), e, d_sae, kind, x)
    if b == 0:
        edits = {name: array[:0] for name, array in edits.items()}
    (y,) = run_graph(bundle_of(kind, d_sae), "steer.onnx", x=x, **edits)
    torch_witness.assert_close(y, by_torch(kind, d_sae, x, edits))
    matches = served_by_numpy(kind, d_sae, x.reshape(-1, D_IN))
    f = np.where(matches.kept, matches.z, 0).reshape(b, t, d_sae)
    features = edits.pop("features")
    expected = witness.steer(make_weights(d_sae, kind), x, f, features, **edits)
    assert witness.difference(expected, y) is None
    torch_expected = by_torch(kind, d_sae, x, {"features": features, **edits}).numpy()
    np.testing.assert_allclose(expected, torch_expected, rtol=1e-9, atol=1e-9)
    assert b * t < 15 or (f.reshape(-1, d_sae)[:, features[0]] > 0).any(), "no edited feature is active"


def test_steering_is_the_numpy_of_its_docstring(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(15).reshape(3, 5, D_IN)
    edits = some_edits(3, 4, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    matches = served_by_numpy(kind, 150, x.reshape(-1, D_IN))
    f = np.where(matches.kept, matches.z, 0).reshape(3, 5, 150)
    features = edits.pop("features")
    f = np.take_along_axis(f, features[:, None].repeat(5, axis=1), axis=2)
    names: dict[str, Any] = {"W_dec": make_weights(150, kind)["W_dec"], "features": features, "size": 1, "gate": 1}
    expected = run_numpy(steer, x=x, f=f, **names, **edits)
    np.testing.assert_allclose(y, expected["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_steering_is_at_most_35_operations(bundle_of: BundleOf, kind: str) -> None:
    """Each operation takes about a microsecond, the whole time for one vector; onnxruntime fuses the Transpose away."""
    graph = ir.load(bundle_of(kind) / "steer.onnx").graph
    assert len(graph) <= 35, [node.op_type for node in graph]


def test_steering_without_edits_returns_x(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    x[1, 1] = 0
    np.testing.assert_array_equal(run_graph(bundle_of(kind), "steer.onnx", x=x)[0], x)


def test_steering_with_edits_that_change_nothing_returns_x(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    no_ops = {"features": np.array([[0, 3, 3, 149]])}
    np.testing.assert_array_equal(run_graph(bundle_of(kind), "steer.onnx", x=x, **no_ops)[0], x)
    edits = some_edits(3, 2, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    fill: dict[str, float] = {"features": 0, "scale": 1, "shift": 0, "low": -LARGEST, "high": LARGEST}
    padded = {name: np.pad(edits[name], ((0, 0), (0, 5)), constant_values=fill[name]) for name in edits}
    np.testing.assert_array_equal(run_graph(bundle_of(kind), "steer.onnx", x=x, **padded)[0], y)


def test_steering_by_one_list_edits_all_requests(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    edits = some_edits(1, 3, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    torch_witness.assert_close(y, by_torch(kind, 150, x, edits))
    repeated = {name: np.repeat(array, 3, axis=0) for name, array in edits.items()}
    torch_witness.assert_close(
        run_graph(bundle_of(kind), "steer.onnx", x=x, **repeated)[0], by_torch(kind, 150, x, edits)
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 4, 1), (1, 1, 3), (3, 4, 1), (3, 4, 3)])
def test_steering_broadcasts_the_gate(bundle_of: BundleOf, kind: str, shape: tuple[int, ...]) -> None:
    x, gate = make_x(12).reshape(3, 4, D_IN), np.random.default_rng(8).uniform(-0.5, 1.5, shape).astype(np.float32)
    gate.flat[0] = 0
    edits = some_edits(3, 3, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, gate=gate, **edits)
    torch_witness.assert_close(y, by_torch(kind, 150, x, edits, gate))


def test_steering_token_choice_edits_the_top_k_only(bundle_of: BundleOf) -> None:
    x = make_x(7)[None]
    z = torch_witness.pre_activations(make_weights(150, "token"), x[0]).numpy()
    order = np.argsort(-z, axis=1)
    for rank, kept in ((K - 1, True), (K, False)):
        for token in range(7):
            one = x[:, token : token + 1]
            features = order[token, rank].reshape(1, 1)
            (y,) = run_graph(
                bundle_of("token"), "steer.onnx", x=one, features=features, scale=np.zeros((1, 1), np.float32)
            )
            assert z[token, features[0, 0]] > 0
            assert (y != one).any() == kept


@pytest.mark.parametrize("bad", [-1, 150, 2**40, -(2**63)])
def test_steering_an_unknown_feature_gives_nan_in_its_request_only(bundle_of: BundleOf, kind: str, bad: int) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    edits = some_edits(3, 3, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    edits["features"][1, 2] = bad
    (found,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], y[[0, 2]])


@pytest.mark.parametrize("one_list", [False, True])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 4), (4, 3)])
def test_steering_a_feature_twice_gives_nan_in_its_request_only(
    bundle_of: BundleOf, kind: str, first: int, second: int, one_list: bool
) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    edits = some_edits(3, 5, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    assert np.isfinite(y).all()
    edits["features"][1, first] = edits["features"][1, second]
    (found,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], y[[0, 2]])
    if one_list:
        (found,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **{name: a[1:2] for name, a in edits.items()})
        assert np.isnan(found).all()


@pytest.mark.parametrize(
    "change", [{"scale": 0.0}, {"shift": 1e-30}, {"low": 0.5}, {"low": -1e30}, {"high": 2.0}, {"high": 1e30}]
)
def test_steering_any_two_edits_of_a_feature_that_are_not_padding_gives_nan(
    bundle_of: BundleOf, change: dict[str, float]
) -> None:
    x = make_x(4)[None]
    pads: dict[str, float] = {"features": 0, "scale": 1, "shift": 0, "low": -LARGEST, "high": LARGEST}
    edits = {name: np.array([[number] * 4], np.int64 if name == "features" else "f4") for name, number in pads.items()}
    for name, number in change.items():
        edits[name][0, 2] = number
    assert np.isfinite(run_graph(bundle_of("mutual"), "steer.onnx", x=x, **edits)[0]).all()  # one, and padding
    edits["scale"][0, 0] = 2
    assert np.isnan(run_graph(bundle_of("mutual"), "steer.onnx", x=x, **edits)[0]).all()


def test_steering_nan_leaves_other_tokens_unchanged(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    edits = some_edits(3, 3, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    x[1, 2, 5] = np.nan
    (found,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    others = np.ones((3, 4), bool)
    others[1, 2] = False
    assert np.isnan(found[1, 2]).any()
    np.testing.assert_array_equal(found[others], y[others])


def test_steering_one_request_does_not_depend_on_the_others(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(12).reshape(3, 4, D_IN)
    edits = some_edits(3, 3, 150, kind, x)
    (y,) = run_graph(bundle_of(kind), "steer.onnx", x=x, **edits)
    others = make_x(12, seed=9).reshape(3, 4, D_IN)
    others[1] = x[1]
    changed = {name: array[::-1].copy() for name, array in edits.items()}  # the middle request stays in the middle
    (found,) = run_graph(bundle_of(kind), "steer.onnx", x=others, **changed)
    np.testing.assert_array_equal(found[1], y[1])
    assert (found[0] != y[0]).any()


def test_steering_agrees_with_the_reference_evaluator(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(10).reshape(2, 5, D_IN)
    edits = some_edits(2, 3, 150, kind, x)
    gate = np.full((1, 1, 1), 0.5, np.float32)
    outputs: Any = ReferenceEvaluator(str(bundle_of(kind) / "steer.onnx")).run(None, {"x": x, "gate": gate, **edits})
    torch_witness.assert_close(outputs[0], by_torch(kind, 150, x, edits, gate))


@pytest.mark.parametrize("kind", ["mutual", "feature"])
@pytest.mark.parametrize(("b", "t", "e"), [(1, 1, 1), (3, 5, 4), (64, 1, 8), (2, 0, 2), (2, 3, 0)])
def test_steering_by_rows_of_the_encoder_equals_its_columns(
    bundle_of: BundleOf, tmp_path: Path, kind: str, b: int, t: int, e: int
) -> None:
    bundle = read(shutil.copytree(bundle_of(kind), tmp_path / "copy"))
    save_tensors(bundle.path / DERIVED, {"W_enc_rows": np.ascontiguousarray(bundle.tensor("W_enc").T)})
    model = steer_graph(bundle, read_header(bundle.path / DERIVED))
    ir.save(model, bundle.path / "rows.onnx")
    assert "W_enc" not in model.graph.initializers
    x = make_x(b * t).reshape(b, t, D_IN)
    edits = some_edits(b, e, 150, kind, x) if t else {"features": np.zeros((b, e), np.int64)}
    (expected,) = run_graph(bundle.path, "steer.onnx", x=x, **edits)
    (y,) = run_graph(bundle.path, "rows.onnx", x=x, **edits)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
