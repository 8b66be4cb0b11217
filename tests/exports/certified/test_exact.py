"""encode_exact.onnx equals the witness on every certain token; the runtime encodes the other tokens again."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import (
    D_IN,
    KINDS,
    K,
    make_manifest,
    make_tied_weights,
    make_tied_x,
    make_weights,
    make_x,
    reference,
    served,
    slots_of,
)
from limited import builders_with
from numpy.typing import NDArray
from numpy_block import run_numpy

from sae_runtime import load
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import DERIVED, WEIGHTS
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.engine.sessions import int8_levels
from sae_runtime.engine.tiling import Tiling
from sae_runtime.exports import witness
from sae_runtime.exports.certified import approximation
from sae_runtime.exports.certified import exact as exact_module
from sae_runtime.exports.certified.approximation import approximate, errors, leading
from sae_runtime.exports.certified.candidates import LIMITS, Bounds, Build, Limits, find_candidates
from sae_runtime.exports.certified.integers import rounded
from sae_runtime.exports.export import export
from sae_runtime.exports.graphs.graph import Graph

BundleOf = Callable[..., Path]
D_SAE = 512
GRAPH = "encode_exact.onnx"


@functools.cache
def opened(path: Path, optimised: Any = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = optimised
    return onnxruntime.InferenceSession(str(path / GRAPH), options, providers=["CPUExecutionProvider"])


def exact(path: Path, x: NDArray[np.float32], **feed: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    indices, values, certain = opened(path).run(None, {"x": x, **{name: np.asarray(v) for name, v in feed.items()}})
    assert certain.dtype == np.bool_ and certain.shape == (len(x),)
    assert indices.shape == values.shape and len(values) == len(x)
    return indices, values, certain


def assert_exact(found: tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]], expected: witness.Matches) -> None:
    """The witness agrees on every token that the graph is certain of."""
    indices, values, sure = found
    assert np.isfinite(values[sure]).all()
    cuts = tuple(cut[sure] if len(cut) == len(sure) and cut.ndim == 2 else cut for cut in expected.cuts)
    rows = witness.Matches(expected.z[sure], expected.kept[sure], cuts)
    assert witness.disagreement(rows, indices[sure], values[sure]) is None


def everything(kind: str, d_sae: int) -> dict[str, Any]:
    return {} if kind == "token" else {"slots": [d_sae]}


@pytest.mark.parametrize(("d_sae", "levels"), [(512, 63), (1024, 127)])
def test_certain_tokens_equal_the_witness(bundle_of: BundleOf, kind: str, d_sae: int, levels: int) -> None:
    path = bundle_of(kind, d_sae, sampled=True)
    for n in (0, 1, 7, 300):
        x = make_x(n)
        found = exact(path, x, levels=np.float32(levels), **everything(kind, d_sae))
        assert found[2].all()
        assert_exact(found, served(kind, d_sae, x))
    assert found[1].any(axis=1).mean() > 0.9, "hardly any match is tested"


def test_certain_tokens_equal_the_witness_without_a_sample(bundle_of: BundleOf, kind: str) -> None:
    x = make_x(100)
    found = exact(bundle_of(kind, D_SAE), x, **everything(kind, D_SAE))
    assert found[2].all()
    assert_exact(found, served(kind, D_SAE, x))


@pytest.mark.parametrize("k", [0, 1, 5, 33, 100, 409, 410, 511, 512, 5000])
def test_slots_of_token_choice_are_k(bundle_of: BundleOf, k: int) -> None:
    x = make_x(20)
    found = exact(bundle_of("token", D_SAE, sampled=True), x, slots=[k])
    assert found[1].shape == (20, min(k, D_SAE)) and found[2].all()
    assert_exact(found, served("token", D_SAE, x, k))


@pytest.mark.parametrize("slots", [0, 1, 5, 24, 512, 5000])
@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_few_slots_leave_out_the_smallest_features(bundle_of: BundleOf, kind: str, slots: int) -> None:
    x, path = make_x(30), bundle_of(kind, D_SAE, sampled=True)
    _, values, certain = exact(path, x, slots=[slots])
    _, wide, _ = exact(path, x, slots=[D_SAE])
    assert values.shape == (30, min(slots, D_SAE)) and certain.all()
    np.testing.assert_array_equal(values, wide[:, :slots])
    assert (wide > 0).sum(axis=1).max() > 5


@pytest.mark.parametrize("kind", ["mutual", "feature"])
def test_certain_tokens_equal_the_witness_for_given_thresholds(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(60), bundle_of(kind, D_SAE, sampled=True)
    z = witness.pre_activations(make_weights(D_SAE, kind), x)
    each = np.random.default_rng(2).uniform(0.3, 4, D_SAE).astype(np.float32)
    for threshold in ([1.1], [0.0], [30.0], each):
        threshold = np.asarray(threshold, np.float32)
        found = exact(path, x, threshold=threshold, slots=[D_SAE])
        assert found[2].all()
        assert_exact(found, witness.threshold(z, threshold))


def test_ties_at_the_cut_have_the_right_counts_and_values(bundle_of: BundleOf, kind: str) -> None:
    """Half of the features repeat the others, and so do half of the tokens; every sum is a whole number."""
    x, weights = make_tied_x(80), make_tied_weights(D_SAE, kind)
    z = witness.pre_activations(weights, x)
    path = bundle_of(kind, D_SAE, tied=True)
    found = exact(path, x, **everything(kind, D_SAE))
    expected = witness.token_choice(z, K) if kind == "token" else witness.threshold(z, weights["threshold"])
    assert_exact(found, expected)
    plain = load(path, graph="encode.onnx", threads=1).encode(x)
    sure = found[2]
    assert sure.mean() > 0.5
    kept = np.sort(np.where(expected.kept, expected.z, 0), axis=1)[:, ::-1][:, : found[1].shape[1]]
    np.testing.assert_array_equal(found[1][sure], kept[sure])
    np.testing.assert_array_equal((found[1] > 0).sum(axis=1)[sure], plain.l0()[sure])


def odd_tokens(kind: str) -> NDArray[np.float32]:
    """Zeros, the bias, sizes over 60 decades, one outlying channel, and NaN and Inf in the last two."""
    x = make_x(80, seed=3)
    x[0], x[1] = 0, make_weights(D_SAE, kind)["b_dec"]
    x[2:40] *= (10.0 ** np.linspace(-30, 30, 38))[:, None]
    x[40:50, 3] *= 1000
    x[50:60] += 100
    x[78, 4], x[79, 5] = np.nan, np.inf
    return x


def test_odd_tokens_are_right_or_not_certain(bundle_of: BundleOf, kind: str) -> None:
    x = odd_tokens(kind)
    with np.errstate(all="ignore"):
        found = exact(bundle_of(kind, D_SAE, sampled=True), x, **everything(kind, D_SAE))
    assert found[2][:2].all() and found[2][60:78].all(), "an ordinary token is not certain"
    assert not found[2][78:].any(), "a token that is not finite is certain"
    with np.errstate(invalid="ignore"):
        assert_exact(found, served(kind, D_SAE, np.where(found[2][:, None], x, 0)))


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_encode_exact_of_a_token_does_not_depend_on_the_others(bundle_of: BundleOf, kind: str, batch: int) -> None:
    path, x = bundle_of(kind, D_SAE, sampled=True), odd_tokens(kind)
    whole = exact(path, x, **everything(kind, D_SAE))
    parts = [exact(path, x[i : i + batch], **everything(kind, D_SAE)) for i in range(0, len(x), batch)]
    indices, values, certain = (np.concatenate(part) for part in zip(*parts, strict=True))
    np.testing.assert_array_equal(certain, whole[2])
    np.testing.assert_array_equal(values[certain], whole[1][certain])
    used = (values > 0) & certain[:, None]
    np.testing.assert_array_equal(indices[used], whole[0][used])
    order = np.random.default_rng(0).permutation(len(x))
    shuffled = exact(path, x[order], **everything(kind, D_SAE))
    np.testing.assert_array_equal(shuffled[2], certain[order])
    np.testing.assert_array_equal(shuffled[1][certain[order]], values[order][certain[order]])


def awkward(kind: str) -> dict[str, NDArray[np.float32]]:
    """Weights with columns of lengths over four decades, large biases, silent features, and equal features."""
    weights, rng = make_weights(D_SAE, kind), np.random.default_rng(4)
    weights["W_enc"] *= (10 ** rng.uniform(-2, 2, D_SAE)).astype(np.float32)
    weights["b_enc"] = (weights["b_enc"] * 10 ** rng.uniform(-2, 2, D_SAE)).astype(np.float32)
    weights["W_enc"][:, 10:20] = 0
    weights["W_enc"][:, 100:140], weights["b_enc"][100:140] = weights["W_enc"][:, 60:100], weights["b_enc"][60:100]
    return weights


def test_uneven_weights_are_encoded_as_by_the_witness(tmp_path: Path, kind: str) -> None:
    weights, x = awkward(kind), np.concatenate([make_x(60), odd_tokens(kind)[40:78]])
    bundle.write(tmp_path / "b", weights, make_manifest(D_SAE, kind), sample=make_x(300, seed=8))
    export(tmp_path / "b")
    z = witness.pre_activations(weights, x)
    expected = witness.token_choice(z, K) if kind == "token" else witness.threshold(z, weights["threshold"])
    found = exact(tmp_path / "b", x, **everything(kind, D_SAE))
    assert found[2].mean() > 0.9
    assert_exact(found, expected)
    features = load(tmp_path / "b", threads=1).encode(x)
    assert witness.disagreement(expected, *slots_of(features)) is None


@pytest.mark.parametrize("certain", [False, True])
def test_a_token_with_too_many_candidates_is_not_certain(
    tmp_path: Path, kind: str, certain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sae_runtime.bundle.opened.check_graph", lambda *_: None
    )  # the exporter never writes other limits
    bundle.write(tmp_path / "b", make_weights(D_SAE, kind), make_manifest(D_SAE, kind), sample=make_x(300, seed=8))
    few = 6 if kind == "token" else 2
    export(tmp_path / "b", builders=builders_with(Limits(groups=few if certain else -1)))
    x = np.concatenate([make_x(60), make_x(60) * np.float32(0.6)])
    found = exact(tmp_path / "b", x, levels=np.float32(int8_levels()), **everything(kind, D_SAE))
    assert_exact(found, served(kind, D_SAE, x))
    redone = int((~found[2]).sum())
    assert 0 < redone < 120 if certain else redone == 120
    sae = load(tmp_path / "b", threads=1, tiling=Tiling(smallest=0, rows=50))
    assert witness.disagreement(served(kind, D_SAE, x), *slots_of(sae.encode(x))) is None
    counted, tokens = sae.redone
    assert tokens >= 120 and counted >= redone
    if kind == "token":
        assert (counted, tokens) == (redone, 120)


@pytest.mark.parametrize("rows", [1, 50, 333])
def test_candidates_are_the_same_for_any_number_of_rows_at_once(tmp_path: Path, kind: str, rows: int) -> None:
    bundle.write(tmp_path / "b", make_weights(D_SAE, kind), make_manifest(D_SAE, kind), sample=make_x(300, seed=8))
    export(tmp_path / "b", builders=builders_with(Limits(row_bytes=rows * 4 * D_IN)))
    for n in (0, 1, 7, 100):
        found = exact(tmp_path / "b", make_x(n), **everything(kind, D_SAE))
        assert found[2].all()
        assert_exact(found, served(kind, D_SAE, make_x(n)))


def inside(path: Path, kind: str, limits: Limits) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """x -> product, unit, bias, error, features, number, begin and certain, of threshold bundles with a cut of 0."""
    made, specs = bundle.read(path), read_header(path / DERIVED)
    graph = Graph("inside")

    def stored(name: str) -> Any:
        array = map_tensor(path / DERIVED, specs[name])
        return graph.constant(array, array.dtype, name=name)

    x, levels = graph.input("x", np.float32, ["n", D_IN]), graph.constant(63, np.float32)
    thresholds = None if kind == "token" else graph.constant(made.tensor("threshold"), np.float32, name="threshold")
    small = rounded(graph, x, levels, stored)
    approximated = approximate(graph, made, small, levels, stored, thresholds)
    c = graph.op("Sub", x, graph.constant(made.tensor("b_dec"), np.float32, name="b_dec"))
    error, bounded = errors(graph, small, c, stored)
    cut = graph.op("Mul", approximated.unit, 0.0)
    bounds = Bounds(approximated, error, bounded, cut, None)
    candidates, certain = find_candidates(Build(graph, made, stored, c, limits), bounds)
    outputs = [approximated.product, approximated.unit, approximated.bias, error, *candidates, certain]
    types = [np.float32] * 4 + [np.int64] * 3 + [np.bool_]
    for number, (value, dtype) in enumerate(zip(outputs, types, strict=True)):
        shape = [f"a{number}"] if number > 3 else [f"a{number}", f"b{number}"]
        graph.output(value, f"y{number}", dtype, shape)
    session = onnxruntime.InferenceSession(
        ir.to_proto(graph.model()).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda x: list(session.run(None, {"x": x}))


@pytest.mark.parametrize("groups", [512, 12])
def test_encode_exact_is_the_numpy_of_its_docstrings(tmp_path: Path, kind: str, groups: int) -> None:
    path, x, limits = tmp_path / "b", make_x(40), Limits(groups=groups)
    bundle.write(path, make_weights(D_SAE, kind), make_manifest(D_SAE, kind), sample=make_x(300, seed=8))
    export(path, builders=builders_with(limits))
    product, unit, bias, error, features, number, begin, certain = inside(path, kind, limits)(x)
    np.testing.assert_array_equal(begin, np.cumsum(number) - number)
    assert number.sum() == len(features) and not number[~certain].any() and (certain.any() or groups == 12)

    weights = make_weights(D_SAE, kind)
    specs = read_header(path / DERIVED)
    order, share = (map_tensor(path / DERIVED, specs[f"int8_{name}"]) for name in ("order", "share"))
    z = np.maximum((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    names: dict[str, Any] = {"order": order, "slots": K if kind == "token" else 4 * K}
    names |= {"error": error, "share": share, "limits": limits}
    approximated = run_numpy(approximation, product=product, unit=unit, bias=bias)

    def by_leading(sizes: Any, group_bound: Any) -> list[Any]:
        result = run_numpy(leading, sizes=sizes, group_bound=group_bound, **names)
        return [result[name] for name in ("features", "largest", "ceiling")]

    def by_find_candidates(cut: Any, ceiling: Any) -> list[Any]:
        result = run_numpy(find_candidates, **{**approximated, **names, "cut": cut, "ceiling": ceiling})
        return [result[name] for name in ("features", "token", "certain")]

    by_numpy: dict[str, Any] = {"leading": by_leading, "find_candidates": by_find_candidates}
    by_numpy |= {"z": z, "threshold": weights.get("threshold"), "slots": names["slots"]}
    result = run_numpy(exact_module, **{**approximated, **by_numpy})
    indices, values, sure = (result[name] for name in ("indices", "values", "certain"))
    outputs = exact(path, x)
    np.testing.assert_array_equal(sure, outputs[2])
    assert sure.any() and (groups == LIMITS.groups or not sure.all())
    np.testing.assert_allclose(values, outputs[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(indices[values > 0], outputs[0][values > 0])


def test_encode_exact_agrees_with_the_reference_evaluator(bundle_of: BundleOf, kind: str) -> None:
    x, path = make_x(4), bundle_of(kind, D_SAE, sampled=True)
    feed: dict[str, Any] = {"x": x, "slots": np.array([K if kind == "token" else 100]), "levels": np.float32(127)}
    if kind != "token":
        feed["threshold"] = map_tensor(path / WEIGHTS, read_header(path / WEIGHTS)["threshold"])
    outputs: Any = reference(str(path / GRAPH)).run(None, feed)
    assert outputs[2].all()
    assert_exact(tuple(outputs), served(kind, D_SAE, x))


def test_certain_tokens_equal_the_witness_in_an_unoptimised_graph(bundle_of: BundleOf, kind: str) -> None:
    """Unoptimised, the product runs in float32."""
    x, path = make_x(50), bundle_of(kind, D_SAE, sampled=True)
    session = opened(path, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    feed = {name: np.asarray(value) for name, value in everything(kind, D_SAE).items()}
    found = tuple(session.run(None, {"x": x, **feed}))
    assert found[2].all()
    assert_exact(found, served(kind, D_SAE, x))


@pytest.mark.parametrize("kind", KINDS)
def test_encode_exact_has_the_inputs_and_outputs_of_the_contract(bundle_of: BundleOf, kind: str) -> None:
    path = bundle_of(kind, D_SAE, sampled=True)
    onnx.checker.check_model(str(path / GRAPH), full_check=True)
    model = onnx.load(path / GRAPH, load_external_data=False)
    assert model.ir_version == 10 and (path / GRAPH).stat().st_size < 20_000
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert {node.domain for node in model.graph.node} == {""}
    threshold = [] if kind == "token" else ["threshold"]
    assert [value.name for value in model.graph.input] == ["x", *threshold, "slots", "levels"]
    assert [value.name for value in model.graph.output] == ["indices", "values", "certain"]
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = {tensor.name: {pair.key: pair.value for pair in tensor.external_data} for tensor in external}
    derived = set(read_header(path / DERIVED)) - {"max_density"}
    assert {name for name, place in places.items() if place["location"] == DERIVED} == derived
    assert "W_enc" not in places, "the dense encoder is not read"
    rows = map_tensor(path / DERIVED, read_header(path / DERIVED)["W_enc_rows"])
    np.testing.assert_array_equal(rows, make_weights(D_SAE, kind)["W_enc"].T)
    assert rows.shape == (D_SAE, D_IN)
