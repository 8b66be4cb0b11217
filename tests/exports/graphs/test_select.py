import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from numpy_block import run_numpy
from onnx.reference import ReferenceEvaluator

from sae_runtime.bundle.graphs import GROUP
from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.graphs.select import (
    first_rows,
    largest,
    not_empty,
    winners,
)

PreActivations = NDArray[np.float32]


def select_model(d_sae: int) -> onnx.ModelProto:
    graph = Graph("select")
    z, n = not_empty(graph, graph.input("z", np.float32, ["n", d_sae]), d_sae)
    slots = graph.input("slots", np.int64, [1])
    indices, values = (first_rows(graph, part, n) for part in largest(graph, z, slots, d_sae))
    graph.output(indices, "indices", np.int64, ["n", "slots"])
    graph.output(values, "values", np.float32, ["n", "slots"])
    return ir.to_proto(graph.model())


@functools.cache
def selected(d_sae: int) -> Callable[[PreActivations, int], tuple[NDArray[np.int64], PreActivations]]:
    model = select_model(d_sae)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda z, slots: tuple(session.run(None, {"z": z, "slots": np.array([slots])}))


def pre_activations(rng: np.random.Generator, n: int, d_sae: int, kind: str) -> PreActivations:
    z: NDArray[Any]
    if kind == "normal":
        z = rng.standard_normal((n, d_sae))
    elif kind == "ties":
        z = rng.integers(-2, 3, (n, d_sae))
    elif kind == "sparse":
        z = np.maximum(rng.normal(-2, 1, (n, d_sae)), 0)
    elif kind == "negative":
        z = -1 - rng.integers(0, 4, (n, d_sae))
    elif kind == "equal":
        z = np.zeros((n, d_sae))
    else:  # one group holds all that is large
        z = rng.standard_normal((n, d_sae))
        z[:, d_sae // 2 : d_sae // 2 + GROUP] += 10
    return z.astype(np.float32)


@pytest.mark.parametrize("d_sae", [16, 32, 48, 512, 1008, 5, 150])
@pytest.mark.parametrize("kind", ["normal", "ties", "sparse", "negative", "equal", "crowded"])
def test_the_largest_are_those_of_a_stable_sort_and_of_the_docstring(d_sae: int, kind: str) -> None:
    rng = np.random.default_rng(d_sae)
    for n in (0, 1, 33):
        z = pre_activations(rng, n, d_sae, kind)
        order = np.argsort(-z, axis=1, kind="stable")
        for slots in (0, 1, 2, GROUP - 1, GROUP + 1, d_sae // GROUP, d_sae // GROUP + 3, d_sae - 1, d_sae, d_sae + 9):
            indices, values = selected(d_sae)(z, slots)
            expected = order[:, :slots]
            assert indices.shape == values.shape == (n, min(slots, d_sae))
            np.testing.assert_array_equal(indices, expected)
            np.testing.assert_array_equal(values, np.take_along_axis(z, expected, axis=1))
            if d_sae % GROUP == 0:
                in_numpy = run_numpy(largest, z=z, slots=slots, d_sae=d_sae)
                np.testing.assert_array_equal(in_numpy["indices"], indices)
                np.testing.assert_array_equal(in_numpy["values"], values)


@pytest.mark.parametrize("d_sae", [64, 150])
def test_selecting_from_a_row_of_nan_leaves_other_rows_unchanged(d_sae: int) -> None:
    z = np.random.default_rng(0).standard_normal((5, d_sae)).astype(np.float32)
    expected = selected(d_sae)(z, 7)
    z[2] = np.nan
    indices, values = selected(d_sae)(z, 7)
    others = np.arange(5) != 2
    assert np.isnan(values[2]).all()
    np.testing.assert_array_equal(indices[others], expected[0][others])
    np.testing.assert_array_equal(values[others], expected[1][others])


@pytest.mark.parametrize("d_sae", [48, 50])
def test_selecting_agrees_with_the_reference_evaluator(d_sae: int) -> None:
    z, evaluator = pre_activations(np.random.default_rng(1), 6, d_sae, "ties"), ReferenceEvaluator(select_model(d_sae))
    for slots in (1, 5, d_sae):
        outputs: Any = evaluator.run(None, {"z": z, "slots": np.array([slots])})
        np.testing.assert_array_equal(outputs[1], selected(d_sae)(z, slots)[1])
        np.testing.assert_array_equal(np.take_along_axis(z, outputs[0], axis=1), outputs[1])


@pytest.mark.parametrize("slots", [1, 3, 8, 20])
def test_the_winners_are_those_of_the_docstring(slots: int) -> None:
    graph = Graph("winners")
    z, count = graph.input("z", np.float32, ["n", 48]), graph.input("slots", np.int64, [1])
    indices, values = winners(graph, z, 8, count, 48)
    graph.output(indices, "indices", np.int64, ["n", "slots"])
    graph.output(values, "values", np.float32, ["n", "slots"])
    model = ir.to_proto(graph.model()).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = pre_activations(np.random.default_rng(0), 20, 48, "normal")
    outputs = session.run(None, {"z": x, "slots": np.array([slots])})
    expected = run_numpy(winners, z=x, k=8, slots=slots, d_sae=48)
    for output, name in zip(outputs, ("indices", "values"), strict=True):
        np.testing.assert_array_equal(output, expected[name])
