"""Hosts with other inputs: names, types, fixed sizes, positions, no mask; their answers are those of numpy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import D_IN
from deployed_model import write_tokenizer
from made_hosts import layer, weights
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sae_runtime import Edit, load_model
from sae_runtime.exports import witness
from sae_runtime.exports.splice.splicing import Splice, splice

TEXTS = ["w1 w2 w3", "w7", "w5 w5", "w9 w8 w7 w6 w5"]
WORDS = 50


def host(
    path: Path,
    *,
    kind: int = TensorProto.INT64,
    batch: Any = "batch",
    time: Any = "time",
    extra: tuple[str, ...] = ("attention_mask",),
    mixes: bool = False,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """A word table and two layers, [batch, time] -> last_hidden_state; masked means are added where tokens mix."""
    arrays = {**weights(), "words": 4 * np.random.default_rng(5).standard_normal((WORDS, D_IN)).astype(np.float32)}
    float_type = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["rows"], name="/embed/Gather")]
    x = "rows"
    if "position_ids" in extra:
        arrays["places"] = np.random.default_rng(6).standard_normal((64, D_IN)).astype(np.float32)
        nodes += [helper.make_node("Gather", ["places", "position_ids"], ["at"], name="/embed/places")]
        nodes += [helper.make_node("Add", [x, "at"], ["placed"], name="/embed/Add")]
        x = "placed"
    if mixes:  # each text's mean over its tokens
        arrays["axis"] = np.array([2], np.int64)
        nodes += [helper.make_node("Cast", ["attention_mask"], ["real"], to=dtype, name="/mix/Cast")]
        nodes += [helper.make_node("Unsqueeze", ["real", "axis"], ["column"], name="/mix/Unsqueeze")]
        nodes += [helper.make_node("Mul", [x, "column"], ["masked"], name="/mix/Mul")]
        nodes += [helper.make_node("ReduceMean", ["masked"], ["total"], axes=[1], name="/mix/ReduceMean")]
        nodes += [helper.make_node("ReduceMean", ["column"], ["share"], axes=[1], name="/mix/share")]
        nodes += [helper.make_node("Div", ["total", "share"], ["mean"], name="/mix/Div")]
        nodes += [helper.make_node("Add", [x, "mean"], ["mixed"], name="/mix/Add")]
        x = "mixed"
    nodes += [helper.make_node("Identity", [x], ["x0"], name="/embed/Identity")]
    nodes += [*layer(0, "/layer.0/Add_output"), *layer(1, "last_hidden_state")]
    tensors = [
        numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(float_type), n) for n, a in arrays.items()
    ]
    inputs = [helper.make_tensor_value_info(name, kind, [batch, time]) for name in ("input_ids", *extra)]
    out = helper.make_tensor_value_info("last_hidden_state", dtype, [batch, time, D_IN])
    graph = helper.make_graph(nodes, "host", inputs, [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    write_tokenizer(path.parent, "gpt2")
    return path


def stream(text: str, layers: int, *, positions: bool = False, mixes: bool = False) -> NDArray[np.float64]:
    """The activation after some layers, in numpy, [t, D_IN]."""
    ids = [int(word[1:]) for word in text.split()]
    x = (4 * np.random.default_rng(5).standard_normal((WORDS, D_IN)).astype(np.float32)).astype(np.float64)[ids]
    if positions:
        x = x + np.random.default_rng(6).standard_normal((64, D_IN)).astype(np.float32)[: len(ids)]
    if mixes:
        x = x + x.mean(axis=0)
    return onward(x, range(layers))


def onward(x: NDArray[np.float64], layers: range) -> NDArray[np.float64]:
    for i in layers:
        x = x + np.maximum(x - x.mean(axis=-1, keepdims=True), 0) @ weights()[f"w{i}"].astype(np.float64)
    return x


HOSTS: dict[str, dict[str, Any]] = {
    "int32": {"kind": TensorProto.INT32},
    "no mask": {"extra": ()},
    "positions": {"extra": ("attention_mask", "position_ids")},
    "types": {"extra": ("attention_mask", "token_type_ids")},
    "mixing": {"mixes": True},
    "fixed batch": {"batch": 3},
    "fixed length": {"time": 8, "mixes": True},
    "both fixed": {"batch": 2, "time": 8, "mixes": True},
    "batch of one": {"batch": 1},
}


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("sae", ["mutual", "token"])
def test_features_and_edits_are_those_of_numpy(
    tmp_path: Path, copy_of: Callable[..., Path], name: str, sae: str
) -> None:
    from sae_runtime.bundle.folder import read

    bundle = copy_of(sae)
    path = host(tmp_path / "model" / "host.onnx", **HOSTS[name])
    splice(path, [Splice(bundle=bundle, hook="layer.0")])
    model = load_model(path.parent, threads=1)
    settings = {"positions": "position_ids" in HOSTS[name].get("extra", ()), "mixes": HOSTS[name].get("mixes", False)}
    own = read(bundle)
    seen, ran = model.features(TEXTS), model.run(TEXTS, Edit.set(3, 4.0))
    for text, one, outputs in zip(TEXTS, seen, ran, strict=True):
        x = stream(text, 1, **settings)
        z = witness.pre_activations(own.weights(), x)
        kept = witness.served(own.manifest.architecture, own.weights(), z).kept
        f = np.where(kept, z, 0)
        np.testing.assert_allclose(one.features.to_dense(), f, atol=1e-4 * f.max())
        y = x + (4.0 - f[:, 3:4]) * own.weights()["W_dec"][3].astype(np.float64)
        expected = onward(y, range(1, 2))
        np.testing.assert_allclose(outputs["last_hidden_state"], expected, atol=1e-5 * np.abs(expected).max())


def test_a_fixed_length_cuts_and_refuses(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    path = host(tmp_path / "model" / "host.onnx", time=4)
    splice(path, [Splice(bundle=bundle_of("mutual"), hook="layer.0")])
    model = load_model(path.parent, threads=1)
    assert model.features("w1 w2 w3 w4 w5 w6").windows.tolist() == [0, 0, 0, 0, 1, 1]
    bare = host(tmp_path / "bare" / "host.onnx", time=4, extra=())
    splice(bare, [Splice(bundle=bundle_of("mutual"), hook="layer.0")])
    model = load_model(bare.parent, threads=1)
    assert len(model.features("w1 w2 w3 w4")) == 4
    with pytest.raises(ValueError, match="texts of exactly 4 tokens and no shorter ones, and text 0 has 2"):
        model.features("w1 w2")


def test_a_score_of_a_fixed_length(tmp_path: Path) -> None:
    path = host(tmp_path / "model" / "host.onnx", time=8, mixes=True)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
    model.graph.node.append(helper.make_node("Gather", ["last_hidden_state", "first"], ["logits"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", D_IN]))
    onnx.save(model, path)
    for text, outputs in zip(TEXTS, load_model(path.parent, threads=1).run(TEXTS), strict=True):
        expected = stream(text, 2, mixes=True)[0]
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5 * np.abs(expected).max())


def test_a_half_precision_host(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    path = host(tmp_path / "model" / "host.onnx", dtype=TensorProto.FLOAT16)
    splice(path, [Splice(bundle=bundle_of("mutual"), hook="layer.0")])
    model = load_model(path.parent, threads=1)
    plain = model.run("w1 w2")["last_hidden_state"]
    assert plain.dtype == np.float16
    np.testing.assert_allclose(plain, stream("w1 w2", 2), atol=0.02 * np.abs(stream("w1 w2", 2)).max())
    with pytest.raises(ValueError, match="text 0 gives NaN or Inf in last_hidden_state with its edits"):
        model.run("w1 w2", Edit.set(3, 1e6))


def test_a_graph_that_takes_something_else_is_refused(tmp_path: Path) -> None:
    path = host(tmp_path / "model" / "host.onnx", extra=("attention_mask", "weather"))
    with pytest.raises(ValueError, match="takes weather, which no text gives"):
        load_model(path.parent).run("w1")
