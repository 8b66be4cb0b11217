"""The bound of int8 holds for every token and feature, for any activations, weights and runtime."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from sae_runtime.exports.certified.integers import LEVELS, Arrays, lengths, probe_graph, product, quantise, rounded
from sae_runtime.exports.graphs.graph import Graph

D_IN, D_SAE = 20, 48
Weights = dict[str, NDArray[np.float32]]
Activations = NDArray[np.float32]
Outputs = list[NDArray[Any]]
OPTIMISED = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
PLAIN = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def random_weights(rng: np.random.Generator, d_in: int = D_IN, d_sae: int = D_SAE) -> Weights:
    return {
        "W_enc": rng.standard_normal((d_in, d_sae)).astype(np.float32),
        "b_enc": rng.normal(-0.1, 0.3, d_sae).astype(np.float32),
        "b_pre": rng.normal(0, 0.5, d_in).astype(np.float32),
    }


def uneven_weights(rng: np.random.Generator) -> Weights:
    """Columns of lengths over six decades, biases that dwarf them, features without weights, and twins."""
    weights = random_weights(rng)
    weights["W_enc"] *= (10 ** rng.uniform(-3, 3, D_SAE)).astype(np.float32)
    weights["b_enc"] = (weights["b_enc"] * 10 ** rng.uniform(-2, 4, D_SAE)).astype(np.float32)
    weights["W_enc"][:, 3:5] = 0
    weights["b_enc"][4] = 0
    weights["W_enc"][:, 7] = weights["W_enc"][:, 8]
    return weights


def one_sign_weights(rng: np.random.Generator) -> Weights:
    """All weights are positive: sums never shrink, so rounding can lose the most."""
    return {name: np.abs(array) for name, array in random_weights(rng).items()}


def silent_weights(rng: np.random.Generator) -> Weights:
    return {name: np.zeros_like(array) for name, array in random_weights(rng).items()}


WEIGHTS = [random_weights, uneven_weights, one_sign_weights, silent_weights]


def samples(rng: np.random.Generator) -> Iterator[tuple[str, Activations]]:
    """Samples that `quantise` may get."""
    normal = rng.standard_normal((200, D_IN))
    outliers = normal * np.where(np.arange(D_IN) % 7 == 2, 100, 1)
    for name, x in (
        ("normal", normal),
        ("heavy", outliers * rng.standard_t(2, (200, 1))),
        ("shifted", outliers + 300),
        ("flat", normal[:, :2] @ rng.standard_normal((2, D_IN))),
        ("tiny", normal * 1e-25),
        ("constant", np.full((5, D_IN), 3.0)),
        ("zero", np.zeros((1, D_IN))),
        ("huge", normal * 1e15),
    ):
        yield name, x.astype(np.float32)


def tokens(rng: np.random.Generator, sample: Activations) -> Activations:
    """Tokens like the sample, tokens unlike it, and its centre."""
    size = np.abs(sample).max() + 1e-20
    like = sample[rng.integers(0, len(sample), 30)]
    single = np.eye(D_IN)[:8] * size * 10 ** rng.uniform(-6, 6, (8, 1))
    parts = [like, like * -3, rng.standard_normal((30, D_IN)) * 10 ** rng.uniform(-8, 4, (30, 1)), single]
    return np.concatenate([*parts, np.zeros((1, D_IN)), sample.mean(axis=0)[None]]).astype(np.float32)


def bound_model(arrays: Arrays, b_pre: NDArray[np.float32]) -> onnx.ModelProto:
    """x f32 [n, d_in] -> product [n, d_sae], lengths [n, 2] and scale [n, 1]."""
    graph = Graph("bound")
    x = graph.input("x", np.float32, ["n", len(arrays["int8_centre"])])
    levels = graph.input("levels", np.float32, [], default=LEVELS)

    def stored(name: str) -> ir.Value:
        return graph.constant(arrays[name], arrays[name].dtype, name=name)

    small = rounded(graph, x, levels, stored)
    graph.output(product(graph, small.q, levels, stored), "product", np.float32, ["n", "d_sae"])
    c = graph.op("Sub", x, graph.constant(b_pre, np.float32, name="b_pre"))
    graph.output(lengths(graph, small, c, stored), "lengths", np.float32, ["n", 2])
    graph.output(small.scale, "scale", np.float32, ["n", 1])
    return ir.to_proto(graph.model())


def by_onnxruntime(model: onnx.ModelProto, optimised: Any = OPTIMISED) -> Callable[[Activations, int], Outputs]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = optimised
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x, levels: list(session.run(None, {"x": x, "levels": np.array(levels, np.float32)}))


def by_reference(model: onnx.ModelProto) -> Callable[[Activations, int], Outputs]:
    evaluator = ReferenceEvaluator(model)
    return lambda x, levels: list(evaluator.run(None, {"x": x, "levels": np.array(levels, np.float32)}))


def pre_activations(weights: Weights, x: Activations) -> NDArray[np.float64]:
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    return (x - w["b_pre"]) @ w["W_enc"] + w["b_enc"]


def upper(arrays: Arrays, outputs: Outputs, *, of_group: bool = False) -> NDArray[np.float64]:
    """Bounds [n, d_sae] by place, of each feature or of its group."""
    p, length, scale = (array.astype(np.float64) for array in outputs)
    bias, bound, share = (arrays[f"int8_{name}"].astype(np.float64) for name in ("bias", "bound", "share"))
    with np.errstate(invalid="ignore"):  # of tokens that have no bound
        error = (length @ bound)[:, :, None] * (1 if of_group else share)
    own = bias.max(axis=1, keepdims=True) if of_group else bias
    return np.asarray((p.reshape(len(p), *share.shape) + error) * scale[:, :, None] + own).reshape(p.shape)


def assert_bounded(weights: Weights, arrays: Arrays, x: Activations, outputs: Outputs) -> None:
    held = outputs[1][:, 0] < 1e30
    assert held[np.abs(x).max(axis=1) < 1e18].all()  # the squares of larger numbers overflow
    order = arrays["int8_order"]
    true = pre_activations(weights, x)[:, order]
    with np.errstate(all="ignore"):
        float32 = ((x - weights["b_pre"]) @ weights["W_enc"] + weights["b_enc"])[:, order]
    for of_group in (False, True):
        bound = upper(arrays, outputs, of_group=of_group)
        assert (bound >= true)[held].all() and (bound >= float32)[held].all()


@pytest.mark.parametrize("make", WEIGHTS)
def test_no_pre_activation_exceeds_its_int8_bound(make: Callable[[np.random.Generator], Weights]) -> None:
    rng = np.random.default_rng(0)
    for _name, sample in samples(rng):
        weights = make(rng)
        arrays = quantise(weights, sample, np.random.default_rng(0))
        model = bound_model(arrays, weights["b_pre"])
        x = tokens(rng, sample)
        for run in (by_onnxruntime(model), by_onnxruntime(model, PLAIN)):
            for levels in (63, 127):
                assert_bounded(weights, arrays, x, run(x, levels))


@pytest.mark.parametrize("make", [random_weights, uneven_weights])
def test_the_int8_bound_is_close_in_all_runtimes(make: Callable[[np.random.Generator], Weights]) -> None:
    rng = np.random.default_rng(1)
    weights, sample = make(rng), rng.standard_normal((100, D_IN)).astype(np.float32)
    arrays = quantise(weights, sample, np.random.default_rng(0))
    model, x = bound_model(arrays, weights["b_pre"]), tokens(rng, sample)
    onnx.checker.check_model(model, full_check=True)
    levels_of_onnxruntime = onnxruntime.GraphOptimizationLevel.__members__.values()
    runs = [by_reference(model), *(by_onnxruntime(model, level) for level in levels_of_onnxruntime)]
    for levels in (63, 127):
        expected = runs[0](x, levels)
        for run in runs:
            outputs = run(x, levels)
            assert_bounded(weights, arrays, x, outputs)
            # Where v / s is midway between two integers, runtimes may differ by a step.
            close = np.isclose(outputs[0], expected[0], rtol=1e-3, atol=1e-3 * np.abs(expected[0]).max(axis=1)[:, None])
            assert close.mean() > 0.98


@pytest.mark.parametrize("levels", [63, 127])
def test_the_int8_bound_is_tight_on_activations_like_the_sample(levels: int) -> None:
    """The slack is a fraction of the standard deviation of the pre-activations."""
    rng = np.random.default_rng(2)
    weights = random_weights(rng, 64, 512)
    x = (rng.standard_normal((600, 64)) * np.where(np.arange(64) % 9 == 1, 100, 1)).astype(np.float32)
    arrays = quantise(weights, x[:500], np.random.default_rng(0))
    outputs = by_onnxruntime(bound_model(arrays, weights["b_pre"]))(x[500:], levels)
    p = pre_activations(weights, x[500:])[:, arrays["int8_order"]]
    alone, grouped = upper(arrays, outputs) - p, upper(arrays, outputs, of_group=True) - p
    assert alone.mean() < 0.45 * p.std() and grouped.mean() < 0.75 * p.std()
    approximate = outputs[0] * outputs[2] + arrays["int8_bias"].ravel()
    assert np.abs(approximate - p).mean() < 0.05 * p.std()


@pytest.mark.parametrize(("given", "taken"), [(-5, 1), (0, 1), (500, 127)])
def test_levels_are_clipped_to_1_to_127(given: int, taken: int) -> None:
    rng = np.random.default_rng(3)
    weights, sample = random_weights(rng), rng.standard_normal((50, D_IN)).astype(np.float32)
    arrays = quantise(weights, sample, np.random.default_rng(0))
    run = by_onnxruntime(bound_model(arrays, weights["b_pre"]))
    for found, expected in zip(run(sample, given), run(sample, taken), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_bounded(weights, arrays, sample, run(sample, given))


def test_the_int8_bound_of_a_row_does_not_depend_on_other_rows() -> None:
    rng = np.random.default_rng(4)
    weights, x = random_weights(rng), rng.standard_normal((40, D_IN)).astype(np.float32)
    arrays = quantise(weights, x, np.random.default_rng(0))
    run = by_onnxruntime(bound_model(arrays, weights["b_pre"]))
    whole = run(x, 127)
    spoilt = x.copy()
    spoilt[5], spoilt[6] = np.nan, 1e30
    others = np.arange(40) // 2 != 2
    others[[5, 6]] = False
    for found, expected in zip(run(spoilt, 127), whole, strict=True):
        np.testing.assert_array_equal(found[others], expected[others])
    assert not run(spoilt, 127)[1][5, 0] < 1e30, "a row of NaN seems to have a bound"


def test_sums_of_two_products_fit_16_bits_at_63_levels() -> None:
    """An x86 processor without VNNI multiplies unsigned activations in pairs, and saturates sums of two at 16 bits."""
    rng = np.random.default_rng(5)
    for make in (random_weights, uneven_weights):
        weights, sample = make(rng), (rng.standard_normal((50, D_IN)) * 30).astype(np.float32)
        arrays = quantise(weights, sample, np.random.default_rng(0))
        model = bound_model(arrays, weights["b_pre"])
        (stored,) = (node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
        model.graph.output.append(onnx.helper.make_tensor_value_info(stored, onnx.TensorProto.UINT8, None))
        q = by_onnxruntime(model)(tokens(rng, sample), 63)[-1]
        assert q.dtype == np.uint8 and q.min() >= 1 and q.max() <= 127
        w = arrays["int8_weights"].astype(np.int64)
        assert len(w) % 4 == 0 and q.shape[1] == len(w) and np.abs(w).max() == 127
        pairs = q.astype(np.int64)[:, :, None] * w
        sums = pairs[:, ::2] + pairs[:, 1::2]
        assert np.abs(sums).max() < 2**15


def test_features_of_an_int8_group_are_similar() -> None:
    """Features of a group have similar biases over their thresholds, and similar lengths."""
    rng = np.random.default_rng(9)
    weights = random_weights(rng, 32, 4096)
    weights["W_enc"] *= rng.uniform(0.2, 5, 4096).astype(np.float32)
    weights["threshold"] = rng.uniform(0, 3, 4096).astype(np.float32)
    arrays = quantise(weights, rng.standard_normal((200, 32)).astype(np.float32), rng)
    order = arrays["int8_order"]
    np.testing.assert_array_equal(np.sort(order), np.arange(4096))
    own = (arrays["int8_bias"].ravel() - weights["threshold"][order]).reshape(-1, 16)
    assert np.ptp(own, axis=1).mean() < 0.15 * np.ptp(own)
    share = arrays["int8_share"]
    assert share.max() < 1.00001 and share.mean() > 0.85
    shuffled = rng.permutation(share.size)
    length = (share * arrays["int8_bound"][0][:, None]).ravel()[shuffled].reshape(-1, 16)
    assert (length / length.max(axis=1, keepdims=True)).mean() < 0.7, "random groups are as uniform"


def test_int8_activations_are_stored_as_uint8() -> None:
    """onnxruntime would make uint8 of int8 activations by adding 128, and their products would saturate."""
    rng = np.random.default_rng(6)
    weights = random_weights(rng)
    arrays = quantise(weights, np.ones((3, D_IN), np.float32), rng)
    nodes = {node.op_type: node for node in bound_model(arrays, weights["b_pre"]).graph.node}
    graph = bound_model(arrays, weights["b_pre"]).graph
    (cast,) = (node for node in graph.node if node.output[0] == nodes["QuantizeLinear"].input[2])
    assert cast.op_type == "Cast" and cast.attribute[0].i == onnx.TensorProto.UINT8


def test_onnxruntime_runs_its_int8_kernel(tmp_path: Path) -> None:
    """onnxruntime replaces the standard operators of the graph by its int8 kernel."""
    rng = np.random.default_rng(7)
    weights = random_weights(rng)
    arrays = quantise(weights, np.ones((3, D_IN), np.float32), rng)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimised.onnx")
    model = bound_model(arrays, weights["b_pre"]).SerializeToString()
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "MatMulIntegerToFloat" in kinds and kinds.count("MatMul") == 1


def test_int8_of_equal_weights_is_equal() -> None:
    rng = np.random.default_rng(8)
    weights, x = random_weights(rng), rng.standard_normal((50, D_IN)).astype(np.float32)
    first, second = (quantise(weights, x, np.random.default_rng(0)) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_the_probe_is_the_sum_times_127() -> None:
    x = np.array([[127] * 8, [-127] * 8, [127, -127] * 4, [0, 1, 2, 3, 4, 5, 6, -7]], np.float32)
    outputs: Any = ReferenceEvaluator(ir.to_proto(probe_graph())).run(None, {"x": x})
    np.testing.assert_array_equal(outputs[0], np.tile(127 * x.sum(axis=1, keepdims=True), (1, 16)))
