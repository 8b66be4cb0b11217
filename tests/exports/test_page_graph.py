"""The graph of a deployed model for a page, run by onnxruntime here: what the page feeds, and what the model gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deployed_model import D_SAE, deploy, some_texts
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from word_model import deploy_words

from sae_runtime import Edit, Model, load_model
from sae_runtime.browser.site.page_runs import PageRuns
from sae_runtime.exports import int8_weights, page_graph
from sae_runtime.exports.page_graph import PageGraph, write_page_graph

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text in some_texts(6, 20) if text]
EDITS = [Edit.set(3, 8.0), Edit.add(7, 2.0), Edit.scale(11, 3.0), Edit.ablate(5), Edit.cap(9, 0.5)]
TOLERANCE = 1e-5  # of the largest number: the same kernels, in another order of the graph


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> dict[str, Model]:
    home = tmp_path_factory.mktemp("models")
    one = {"bundle": bundle_of("mutual", D_SAE, 2)}
    return {
        "bert": load_model(deploy(home / "bert", "bert", one), threads=1),
        "token": load_model(deploy(home / "token", "bert", {"bundle": bundle_of("token", D_SAE)}), threads=1),
        "gpt2": load_model(deploy(home / "gpt2", "gpt2", {**one, "required": True}), threads=1),
        "two": load_model(deploy_words(home / "two", bundle_of("mutual", D_SAE, 2), names=("a", "b")), threads=1),
    }


def written(model: Model, folder: Path, **options: Any) -> tuple[PageGraph, PageRuns]:
    folder.mkdir()
    made = write_page_graph(model.layout.graph, folder, **options)
    return made, PageRuns(made.graph, model)


def ids_of(model: Model, text: str) -> NDArray[np.int64]:
    return model.tokenizer.encode([text])[0].ids


def close(actual: NDArray[Any], expected: NDArray[Any], tolerance: float = TOLERANCE) -> bool:
    return bool(np.abs(actual - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=1e-30))


@pytest.mark.parametrize("name", ["bert", "token", "gpt2", "two"])
def test_features_and_steered_outputs_are_the_models(models: dict[str, Model], name: str, tmp_path: Path) -> None:
    model = models[name]
    made, runs = written(model, tmp_path / "page")
    graph = onnx.load(made.graph, load_external_data=False).graph
    assert not {value.name for value in graph.input} & {tensor.name for tensor in graph.initializer}
    output = next(iter(model.outputs))
    texts = TEXTS if name != "two" else ["w4 w5 w6", "w11"]
    for text in texts:
        ids = ids_of(model, text)
        expected = model.read([ids], texts=[text])[0]
        found = runs.features(ids)
        assert found.keys() == expected.keys()
        assert all(close(found[sae].to_dense(), expected[sae].to_dense()) for sae in found)
        assert sum(len(one.values) for one in found.values()) > 2 * len(ids)  # the slots of those by threshold
        edits = dict.fromkeys(model.saes, EDITS)
        steered = model.run(text, edits, outputs=output)[output]
        assert close(runs.run(ids[None], [output], edits=edits)[0][0], steered)
        assert not close(runs.run(ids[None], [output])[0][0], steered, 1e-2)


def test_weights_lie_in_files_below_a_size_and_equal_ones_once(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["two"]
    whole, _ = written(model, tmp_path / "whole")
    size = sum(file.stat().st_size for file in whole.external)
    weights = sum(array.nbytes for array in _weights_of(model.layout.graph).values() if array.nbytes > 1024)
    assert size < 0.7 * weights  # the SAE is in the graph twice
    monkeypatch.setattr(page_graph, "_LARGEST", 8_000)
    parts, runs = written(model, tmp_path / "parts")
    sizes = [file.stat().st_size for file in parts.external]
    assert len(sizes) > 2 and sum(sizes) == size
    largest = max(array.nbytes for array in _weights_of(model.layout.graph).values())
    assert max(sizes) <= max(8_000, largest + 64)
    ids = ids_of(model, "w4 w5")
    assert close(runs.features(ids)["b"].to_dense(), model.read([ids], texts=["t"])[0]["b"].to_dense())
    assert {file.name for file in (tmp_path / "parts").iterdir()} == {"model.onnx", *(f.name for f in parts.external)}


def _weights_of(graph: Path) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(graph).graph.initializer}


def test_int8_keeps_the_hosts_products_and_tables_and_no_sae(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_weights, "_LEAST", 100)
    model = models["bert"]
    made, runs = written(model, tmp_path / "page", int8=True)
    before, after = _weights_of(model.layout.graph), _weights_of(made.graph)
    kept = {name.removesuffix("_int8") for name in after if name.endswith("_int8")}
    assert made.weights == "int8" and len(kept) > 10
    assert not [name for name in kept if name.startswith("sae")]
    assert all(np.array_equal(after[name], before[name], equal_nan=True) for name in before if name.startswith("sae/"))
    axes = {
        node.output[0]: node.attribute[0].i
        for node in onnx.load(made.graph, load_external_data=False).graph.node
        if node.op_type == "DequantizeLinear"
    }
    for name in kept:
        numbers, scale = after[f"{name}_int8"], after[f"{name}_scale"]
        by = scale[:, None] if axes[name] == 0 else scale
        assert (np.abs(numbers * by - before[name]) <= by / 2 + 1e-6).all()
        assert len(scale) == before[name].shape[axes[name]]
    tables = [name for name in kept if "embeddings" in name and before[name].shape[0] in (50, 64)]
    assert tables and all(axes[name] == 0 for name in tables)
    texts = [text for text in TEXTS if len(ids_of(model, text)) == len(ids_of(model, TEXTS[0]))] + [TEXTS[0]]
    batch = np.stack([ids_of(model, text) for text in texts])
    together = runs.run(batch, ["last_hidden_state"])[0]
    alone = runs.run(batch[:1], ["last_hidden_state"])[0]
    assert np.array_equal(together[0], alone[0])  # no text changes another one's numbers
    expected = model.run(TEXTS[0])["last_hidden_state"]
    assert close(alone[0], expected, 0.1) and not close(alone[0], expected)


def test_int8_needs_float32_weights(models: dict[str, Model], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no float32 weights of products or tables"):
        written(models["bert"], tmp_path / "page", int8=True)  # all are small


def test_a_weight_that_others_read_too_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_weights, "_LEAST", 1)
    w, t = (np.random.default_rng(i).standard_normal((8, 8)).astype(np.float32) for i in range(2))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["y", "w"], ["z"]),
        helper.make_node("Gemm", ["z", "t"], ["out"], transB=1),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in ("x", "out")]
    tensors = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(t, "t")]
    graph = helper.make_graph(nodes, "host", values[:1], values[1:], tensors)
    assert int8_weights.quantise_weights(graph, ["sae"], lambda tensor: bytes(tensor.raw_data)) == 1
    assert {tensor.name for tensor in graph.initializer} == {"w", "t_int8", "t_scale"}
    assert graph.node[0].attribute[0].i == 0  # a column of the product is a row of a transposed weight


def test_a_host_of_four_bits_keeps_its_activations(tmp_path: Path) -> None:
    attributes: dict[str, Any] = {"K": 32, "N": 16, "bits": 4, "block_size": 32, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 32), ("y", 16))]
    w = numpy_helper.from_array(np.random.default_rng(0).integers(0, 255, (16, 1, 16)).astype(np.uint8), "w")
    s = numpy_helper.from_array(np.ones((16, 1), np.float32), "s")
    graph = helper.make_graph([node], "host", values[:1], values[1:], [w, s])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "host.onnx")
    (tmp_path / "page").mkdir()
    made = write_page_graph(tmp_path / "host.onnx", tmp_path / "page")
    levels = {a.name: a.i for a in onnx.load(made.graph).graph.node[0].attribute}
    assert made.weights == "int4" and levels["accuracy_level"] == 1


def test_token_types_are_fed_and_weights_are_not(tmp_path: Path) -> None:
    """A graph of an old form names its weights as inputs with a default."""
    weight = numpy_helper.from_array(np.ones((2, 4), np.float32), "token_type_embeddings.weight")
    types = numpy_helper.from_array(np.zeros((1, 1), np.int64), "segment_ids")
    nodes = [
        helper.make_node("Gather", ["token_type_embeddings.weight", "segment_ids"], ["kinds"]),
        helper.make_node("Add", ["x", "kinds"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", 4]) for name in ("x", "y"))
    of_weight = helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, [2, 4])
    of_types = helper.make_tensor_value_info("segment_ids", TensorProto.INT64, ["b", "t"])
    graph = helper.make_graph(nodes, "host", [x, of_weight, of_types], [y], [weight, types])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "host.onnx")
    (tmp_path / "page").mkdir()
    made = onnx.load(write_page_graph(tmp_path / "host.onnx", tmp_path / "page").graph).graph
    assert [value.name for value in made.input] == ["x", "segment_ids"]
    assert [tensor.name for tensor in made.initializer] == [weight.name]
