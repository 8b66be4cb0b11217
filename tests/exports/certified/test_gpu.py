from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import D_IN, K, make_manifest, make_weights, make_x, run_graph, served, with_b_pre
from numpy.typing import NDArray

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import DERIVED
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.exports import witness
from sae_runtime.exports.certified.gpu import candidates, half_precision
from sae_runtime.exports.export import export

# What onnxruntime 1.27 and later run on CUDA at opset 21, of what a graph may use. ReduceMax, ReduceMin, Pad and
# Equal are not among them, and NonZero waits for the host.
ON_CUDA = {
    "Add", "And", "Cast", "Concat", "Div", "Gather", "GatherElements", "Greater", "Less", "LessOrEqual", "MatMul",
    "Mul", "ReduceL2", "ReduceSumSquare", "Relu", "Sqrt", "Squeeze", "Sub", "TopK", "Unsqueeze", "Where",
}  # fmt: skip

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Give the path of a bundle with encode_gpu.onnx; do not alter it."""
    paths: dict[tuple[str, int, int | None], Path] = {}

    def give(kind: str, d_sae: int = 150, slots: int | None = None) -> Path:
        key = (kind, d_sae, slots)
        if key not in paths:
            paths[key] = tmp_path_factory.mktemp("gpu") / kind
            manifest = make_manifest(d_sae, kind, slots=slots)
            bundle.write(paths[key], make_weights(d_sae, kind), manifest, sample=make_x(300, seed=8))
            export(paths[key], graphs=("gpu",))
        return paths[key]

    return give


def rows_of(matches: witness.Matches, rows: NDArray[np.bool_]) -> witness.Matches:
    cuts = tuple(cut[rows] if len(cut) == len(rows) else cut for cut in matches.cuts)
    return witness.Matches(matches.z[rows], matches.kept[rows], cuts)


@pytest.mark.parametrize("d_sae", [150, 1500])
@pytest.mark.parametrize("n", [1, 300])
def test_certain_rows_equal_the_witness(made: Made, kind: str, d_sae: int, n: int) -> None:
    slots = K if kind == "token" else d_sae // 8
    x, path = make_x(n), made(kind, d_sae, slots)
    indices, values, certain = run_graph(path, "encode_gpu.onnx", x=x)
    assert values.shape == indices.shape == (n, slots) and indices.dtype == np.int64 and certain.dtype == np.bool_
    expected = served(kind, d_sae, x)
    whole = certain & (expected.kept.sum(axis=1) <= slots)
    assert witness.disagreement(rows_of(expected, whole), indices[whole], values[whole]) is None
    assert n == 1 or whole.mean() > 0.9, "hardly a token is certain"


def test_a_token_with_more_matches_than_candidates_is_not_certain(made: Made) -> None:
    path = made("mutual", 1500)
    certain = run_graph(path, "encode_gpu.onnx", x=make_x(300))[2]
    matches = served("mutual", 1500, make_x(300)).kept.sum(axis=1)
    assert not certain[matches > candidates(4 * K, 1500)].any() and (matches > candidates(4 * K, 1500)).any()
    assert certain[matches < 4 * K].all()


def test_rows_of_the_gpu_graph_are_independent(made: Made, kind: str) -> None:
    x, path = make_x(20), made(kind)
    together = run_graph(path, "encode_gpu.onnx", x=x)
    for row in (0, 7, 19):
        alone = run_graph(path, "encode_gpu.onnx", x=x[row : row + 1])
        assert (alone[0][0] == together[0][row])[alone[1][0] > 0].all()
        np.testing.assert_allclose(alone[1][0], together[1][row], rtol=1e-5, atol=1e-6)


def test_a_row_that_is_not_finite_is_not_certain_and_leaves_other_rows_unchanged(made: Made, kind: str) -> None:
    x, path = make_x(7), made(kind)
    spoilt = x.copy()
    spoilt[1, 3], spoilt[2, 4], spoilt[3, 5], spoilt[4] = np.nan, np.inf, -np.inf, 1e30
    before, after = run_graph(path, "encode_gpu.onnx", x=x), run_graph(path, "encode_gpu.onnx", x=spoilt)
    assert not after[2][1:5].any() and after[2][[0, 5, 6]].all()
    assert np.isfinite(after[1][1:5]).all() and (after[0] >= 0).all() and (after[0] < 150).all()
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was[[0, 5, 6]], now[[0, 5, 6]])


@pytest.mark.parametrize(
    ("kind", "size"), [("token", 1.0), ("token", 1e4), ("token", 1e18), ("mutual", 1e-20), ("feature", 1e-4)]
)
def test_the_gpu_graph_is_right_for_activations_of_any_size(made: Made, kind: str, size: float) -> None:
    """The graph scales sizes that float16 cannot hold; a threshold stops small activations and passes large ones."""
    x, path = (make_weights(150, kind)["b_dec"] + size * make_x(40)).astype(np.float32), made(kind)
    indices, values, certain = run_graph(path, "encode_gpu.onnx", x=x)
    assert certain.all()
    assert witness.disagreement(served(kind, 150, x), indices, values) is None


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_no_pre_activation_exceeds_its_float16_bound(kind: str, spread: float) -> None:
    """The test computes products in float64, with one rounding to float16."""
    rng = np.random.default_rng(3)
    weights, x = make_weights(150, kind), make_x(200)
    weights["W_enc"] *= rng.choice([1, spread], weights["W_enc"].shape).astype(np.float32)
    arrays = half_precision(with_b_pre(weights), x, float16_roundings=1)
    half, kappa = arrays["half_weights"].astype(np.float64), arrays["half_kappa"].astype(np.float64).item()
    assert half.shape == (32, 150) and np.isfinite(half).all() and (half[D_IN + 1 : D_IN + 3] > 0).all()
    assert not half[D_IN + 3 :].any()
    c = x.astype(np.float64) - weights["b_dec"]
    s = np.sqrt((c**2).sum(axis=1, keepdims=True) + kappa**2)
    v = np.concatenate([c, np.full_like(s, kappa)], axis=1) / s
    q = v.astype(np.float16).astype(np.float64)
    e = np.linalg.norm(v - q, axis=1, keepdims=True)
    bound = q @ half[: D_IN + 1] + e * 256 * half[D_IN + 1] + half[D_IN + 2]
    p = (c @ weights["W_enc"].astype(np.float64) + weights["b_enc"] - weights.get("threshold", np.zeros(150))) / s
    slack = bound.astype(np.float16) - p
    assert (slack >= 0).all() and np.median(slack) < 2e-3, "the bound is loose"
    without = (q @ half[: D_IN + 1]).astype(np.float16) - p
    assert (without < 0).mean() > 0.1, "the product without the error is a bound already"


def test_weights_that_float16_cannot_hold_are_refused() -> None:
    weights = make_weights(150, "token")
    weights["W_enc"][3, 4] = 1e5
    with pytest.raises(
        ValueError, match=r"^W_enc reaches 100000, and float16 ends at 65,504; export without the graph 'gpu'$"
    ):
        half_precision(with_b_pre(weights), make_x(10))


@pytest.mark.parametrize("typical", [0.0, 1e-30, 1e20])
def test_float16_weights_are_finite_for_a_sample_of_any_size(kind: str, typical: float) -> None:
    weights = make_weights(150, kind)
    arrays = half_precision(with_b_pre(weights), weights["b_dec"] + np.full((5, D_IN), typical, np.float32))
    assert all(np.isfinite(array.astype(np.float64)).all() and array.any() for array in arrays.values())


def test_candidates_are_a_quarter_more_than_slots_and_at_most_d_sae() -> None:
    assert [candidates(32, 24_576), candidates(96, 24_576), candidates(6, 10)] == [48, 120, 10]


def test_the_gpu_graph_has_cuda_operators_only(made: Made, kind: str) -> None:
    """Every operator has a CUDA kernel that does not wait for the CPU; TopK is by rows, sorted, and at most 256."""
    path = made(kind)
    model = onnx.load(path / "encode_gpu.onnx", load_external_data=False)
    assert {node.op_type for node in model.graph.node} <= ON_CUDA
    numbers = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "TopK":
            assert not node.attribute and onnx.numpy_helper.to_array(numbers[node.input[1]]).item() <= 256
    record = bundle.read(path).manifest.graphs["encode_gpu.onnx"]
    assert record.row_independent and record.derived


def test_the_gpu_graph_is_made_on_request_only(made: Made, bundle_of: Callable[..., Path], kind: str) -> None:
    assert "encode_gpu.onnx" not in bundle.read(bundle_of(kind)).manifest.graphs
    assert "encode_exact.onnx" not in bundle.read(made(kind)).manifest.graphs
    specs = read_header(made(kind) / DERIVED)
    rows = map_tensor(made(kind) / DERIVED, specs["W_enc_rows"])
    np.testing.assert_array_equal(rows, make_weights(150, kind)["W_enc"].T)


def test_the_gpu_graph_is_certain_of_ordinary_tokens(made: Made, kind: str) -> None:
    x = make_x(256, seed=8)
    certain = run_graph(made(kind), "encode_gpu.onnx", x=x)[2]
    assert (~certain).mean() < 0.1
