from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import D_IN, K, make_manifest, make_weights, make_x, reference, run_graph, served
from numpy.typing import NDArray

from sae_runtime import bundle
from sae_runtime.bundle import DERIVED, WEIGHTS
from sae_runtime.exports import witness
from sae_runtime.exports.export import export
from sae_runtime.tensors import map_tensor, read_header

D_SAE = 512
GRAPHS = {"encode_fast.onnx": 0.25, "encode_half.onnx": 0.005}  # and how far a value may be off, of its row's largest


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def give(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("fast") / kind
            sample = make_x(300, seed=8)
            bundle.write(made[kind], make_weights(D_SAE, kind), make_manifest(D_SAE, kind), sample=sample)
            export(made[kind], precisions=["fast", "float16"])
        return made[kind]

    return give


def everything(kind: str) -> dict[str, NDArray[np.int64]]:
    return {} if kind == "token" else {"width": np.array([D_SAE])}


def assert_near(expected: witness.Matches, indices: NDArray[np.int64], values: NDArray[np.float32], off: float) -> None:
    """What is found is a latent of that feature, roughly, and what is missing lies near the cut."""
    assert (np.diff(values, axis=1) <= 0).all()
    found = np.zeros_like(expected.z)
    row, slot = np.nonzero(values > 0)
    found[row, indices[row, slot]] = values[row, slot]
    top = expected.z.max(axis=1, initial=0)[:, None]
    assert (np.abs(found - expected.z) <= off * top)[found > 0].all()
    assert ((found > 0) != expected.kept).sum() <= 0.02 * found.size
    cut = np.broadcast_to(expected.cuts[0], expected.z.shape)
    assert (np.abs(expected.z - cut) <= off * top)[(found > 0) != expected.kept].all()


@pytest.mark.parametrize("name", GRAPHS)
def test_features_are_roughly_right(path_of: Callable[[str], Path], kind: str, name: str) -> None:
    for n in (0, 1, 7, 200):
        x = make_x(n)
        indices, values = run_graph(path_of(kind), name, x=x, **everything(kind))
        assert indices.shape == values.shape == (n, K if kind == "token" else D_SAE)
        assert_near(served(kind, D_SAE, x), indices, values, GRAPHS[name])
    assert (values > 0).sum() > 200


@pytest.mark.parametrize("name", GRAPHS)
def test_other_weights_give_other_features(path_of: Callable[[str], Path], kind: str, name: str) -> None:
    x = make_x(50)
    weights = make_weights(D_SAE, kind, seed=1)
    z = witness.latents(weights, x)
    other = witness.token_choice(z, K) if kind == "token" else witness.threshold(z, weights["threshold"])
    indices, values = run_graph(path_of(kind), name, x=x, **everything(kind))
    with pytest.raises(AssertionError):
        assert_near(other, indices, values, GRAPHS[name])


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_do_not_matter_to_each_other(path_of: Callable[[str], Path], kind: str, name: str) -> None:
    x, path = make_x(12), path_of(kind)
    indices, values = run_graph(path, name, x=x)
    x[3], x[4] = np.nan, 1e20
    spoilt_indices, spoilt_values = run_graph(path, name, x=x)
    others = ~np.isin(np.arange(12), (3, 4))
    assert np.isnan(spoilt_values[3]).any() or name == "encode_fast.onnx"
    np.testing.assert_array_equal(spoilt_values[others], values[others])
    used = values[others] > 0
    np.testing.assert_array_equal(spoilt_indices[others][used], indices[others][used])


@pytest.mark.parametrize("name", GRAPHS)
def test_the_contract_is_that_of_encode(path_of: Callable[[str], Path], kind: str, name: str) -> None:
    path = path_of(kind)
    onnx.checker.check_model(str(path / name), full_check=True)
    graph, plain = (onnx.load(path / file, load_external_data=False).graph for file in (name, "encode.onnx"))
    more = ["levels"] if name == "encode_fast.onnx" else []
    assert [value.name for value in graph.input] == [*(value.name for value in plain.input), *more]
    assert list(graph.output) == list(plain.output)
    assert {node.domain for node in graph.node} == {""} and (path / name).stat().st_size < 20_000
    stored = {tensor.name for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert "W_enc" not in stored and stored & {"W_enc_half", "int8_weights"}


def test_half_is_the_weights_rounded(path_of: Callable[[str], Path]) -> None:
    specs = read_header(path_of("mutual") / DERIVED)
    half = map_tensor(path_of("mutual") / DERIVED, specs["W_enc_half"])
    assert half.dtype == np.float16 and half.shape == (D_IN, D_SAE)
    np.testing.assert_array_equal(half, make_weights(D_SAE, "mutual")["W_enc"].astype(np.float16))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_reference_evaluator_agrees(path_of: Callable[[str], Path], kind: str, name: str) -> None:
    x, path = make_x(4), path_of(kind)
    feed: dict[str, Any] = {"x": x, "width": np.array([K if kind == "token" else D_SAE])}
    if kind != "token":
        feed["theta"] = map_tensor(path / WEIGHTS, read_header(path / WEIGHTS)["threshold"])
    if name == "encode_fast.onnx":
        feed["levels"] = np.float32(127)
    outputs: Any = reference(str(path / name)).run(None, feed)
    assert_near(served(kind, D_SAE, x), outputs[0], outputs[1], GRAPHS[name])
