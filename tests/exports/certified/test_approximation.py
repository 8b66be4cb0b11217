"""No feature is larger than the bound of its group, and `leading` gives every feature above its ceiling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import make_x
from numpy.typing import NDArray
from numpy_block import run_numpy

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.folder import DERIVED
from sae_runtime.bundle.tensors import map_tensor, read_header
from sae_runtime.exports.certified import approximation
from sae_runtime.exports.certified.approximation import approximate, leading
from sae_runtime.exports.certified.integers import rounded
from sae_runtime.exports.graphs.graph import Graph

BundleOf = Callable[..., Path]
D_SAE = 512


def opened(path: Path) -> Callable[..., list[NDArray[Any]]]:
    """x, slots and threshold -> features, sizes, ceiling, product, unit, group_bound and bias."""
    made, specs = bundle.read(path), read_header(path / DERIVED)
    graph = Graph("leading")

    def stored(name: str) -> ir.Value:
        array = map_tensor(path / DERIVED, specs[name])
        return graph.constant(array, array.dtype, name=name)

    x, levels = graph.input("x", np.float32, ["n", made.manifest.architecture.d_in]), graph.constant(63, np.float32)
    threshold = graph.input("threshold", np.float32, ["t"]) if "threshold" in made.specs else None
    slots = graph.input("slots", np.int64, [1])
    small = rounded(graph, x, levels, stored)
    approximated = approximate(graph, made, small, levels, stored, threshold)
    outputs = [*leading(graph, approximated, stored, slots), *approximated[1:3], approximated.group_bound]
    outputs.append(approximated.bias)
    for i, value in enumerate(outputs):
        graph.output(value, f"y{i}", np.int64 if i == 0 else np.float32, ["n", f"m{i}"])
    model = ir.to_proto(graph.model()).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return lambda **feed: list(session.run(None, {name: feed[name] for name in names}))


def sizes(path: Path, outputs: list[NDArray[Any]], threshold: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sizes of all features [n, d_sae], by feature, in float64."""
    specs = read_header(path / DERIVED)
    order, bias = (map_tensor(path / DERIVED, specs[f"int8_{name}"]) for name in ("order", "bias"))
    by_place = outputs[3] + outputs[4] * (bias.ravel().astype(np.float64) - np.broadcast_to(threshold, D_SAE)[order])
    by_feature = np.empty(by_place.shape)
    by_feature[:, order] = by_place
    return by_feature


@pytest.mark.parametrize("slots", [1, 5, 31, 32, 33, 511, 512])
def test_leading_gives_every_feature_above_its_ceiling(bundle_of: BundleOf, kind: str, slots: int) -> None:
    path, x = bundle_of(kind, D_SAE, sampled=True), make_x(40)
    each = np.random.default_rng(0).uniform(0.2, 2, D_SAE).astype(np.float32)
    threshold = {"token": np.zeros(1, np.float32), "mutual": np.array([0.7], np.float32), "feature": each}[kind]
    outputs = opened(path)(x=x, slots=np.array([slots]), threshold=threshold)
    features, found, ceiling = outputs[:3]
    true = sizes(path, outputs, threshold)
    assert features.shape == found.shape == (40, slots) and (np.diff(found, axis=1) <= 0).all()
    assert all(len(set(row)) == slots for row in features)
    at = np.take_along_axis(true, features, axis=1)
    np.testing.assert_allclose(found, at if kind == "token" else np.maximum(at, 0), rtol=1e-5, atol=1e-3)
    above = true > ceiling * (1 + 1e-6) + 1e-3
    np.put_along_axis(above, features, False, axis=1)
    assert not above.any(), "a feature above the ceiling is left out"
    best = np.sort(true, axis=1)[:, ::-1][:, :slots]
    assert np.maximum(at, 0).sum() > 0.8 * np.maximum(best, 0).sum(), "the features are not large"


def test_no_feature_is_larger_than_the_bound_of_its_group(bundle_of: BundleOf, kind: str) -> None:
    path, x = bundle_of(kind, D_SAE, sampled=True), make_x(40)
    threshold = np.full(1 if kind != "feature" else D_SAE, 0.5 if kind != "token" else 0.0, np.float32)
    outputs = opened(path)(x=x, slots=np.array([8]), threshold=threshold)
    order = map_tensor(path / DERIVED, read_header(path / DERIVED)["int8_order"])
    by_group = sizes(path, outputs, threshold)[:, order].reshape(40, -1, 16).max(axis=2)
    assert (outputs[5] >= by_group - 1e-4 * np.abs(by_group)).all()
    assert (outputs[5] - by_group).mean() < 0.5 * by_group.std(), "the bounds are loose"


@pytest.mark.parametrize("slots", [1, 5, 33, 512])
def test_leading_is_the_numpy_of_its_docstring(bundle_of: BundleOf, kind: str, slots: int) -> None:
    path, x = bundle_of(kind, D_SAE, sampled=True), make_x(40)
    threshold = np.full(1 if kind != "feature" else D_SAE, 0.0 if kind == "token" else 0.5, np.float32)
    features, largest, ceiling, product, unit, group_bound, bias = opened(path)(
        x=x, slots=np.array([slots]), threshold=threshold
    )
    order = map_tensor(path / DERIVED, read_header(path / DERIVED)["int8_order"])
    names = run_numpy(approximation, product=product, unit=unit, bias=bias)
    size = names["sizes"]
    np.testing.assert_allclose(names["group_bound"], group_bound, rtol=1e-5, atol=1e-5)
    if kind != "token":
        size, group_bound = np.maximum(size, 0), np.maximum(group_bound, 0)
    expected = run_numpy(leading, sizes=size, group_bound=group_bound, order=order, slots=slots)
    np.testing.assert_allclose(largest, expected["largest"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ceiling, expected["ceiling"], rtol=1e-5, atol=1e-4)
    assert (features == expected["features"])[largest > 0].mean() > 0.99  # equal sizes may come in another order
