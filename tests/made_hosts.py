"""Small host graphs as their nodes, of any opset and type, without exporter: a word table, then layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conftest import D_IN
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WORDS = 12


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The arrays of a host: a word table of rows as large as an SAE's activations, and two layers."""
    rng = np.random.default_rng(seed)
    arrays = {"words": 4 * rng.standard_normal((WORDS, D_IN))}
    arrays |= {f"w{i}": rng.standard_normal((D_IN, D_IN)) / np.sqrt(D_IN) for i in range(2)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def stream(ids: NDArray[np.int64], layers: int, seed: int = 0) -> NDArray[np.float64]:
    """What leaves the layers in numpy: x + normed(x) w, where normed takes the mean away."""
    arrays = {name: array.astype(np.float64) for name, array in weights(seed).items()}
    x = arrays["words"][ids]
    for i in range(layers):
        x = x + np.maximum(x - x.mean(axis=-1, keepdims=True), 0) @ arrays[f"w{i}"]
    return x


def layer(i: int, name: str) -> list[Any]:
    """The nodes of one layer, named as torch's older exporter names them."""
    x, at = ("x0" if i == 0 else f"/layer.{i - 1}/Add_output"), f"/layer.{i}"
    return [
        helper.make_node("ReduceMean", [x], [f"{at}/mean"], name=f"{at}/norm/ReduceMean", axes=[-1]),
        helper.make_node("Sub", [x, f"{at}/mean"], [f"{at}/centred"], name=f"{at}/norm/Sub"),
        helper.make_node("Relu", [f"{at}/centred"], [f"{at}/relu"], name=f"{at}/mlp/Relu"),
        helper.make_node("MatMul", [f"{at}/relu", f"w{i}"], [f"{at}/mlp"], name=f"{at}/mlp/MatMul"),
        helper.make_node("Add", [x, f"{at}/mlp"], [name], name=f"{at}/Add"),
    ]


def host(
    path: Path,
    *,
    opset: int = 14,
    ir_version: int = 7,
    dtype: int = TensorProto.FLOAT,
    before: Sequence[Any] = (),
    external: str | None = None,
) -> Path:
    """Write a host graph: ids [batch, time] -> out [batch, time, D_IN], without shapes inside.

    Args:
        path: the graph.
        opset: below 18, since the norm has its axes as an attribute.
        ir_version: of the file.
        dtype: of the activations and the weights.
        before: nodes that make x0 of `rows`, the rows of the words.
        external: a file for the weights, beside the graph.
    """
    gather = helper.make_node("Gather", ["words", "ids"], ["rows" if before else "x0"], name="/embed/Gather")
    nodes = [gather, *before, *layer(0, "/layer.0/Add_output"), *layer(1, "out")]
    tensors = []
    for name, array in weights().items():
        tensor = numpy_helper.from_array(array, name)
        if dtype != TensorProto.FLOAT:
            tensor = helper.make_tensor(name, dtype, array.shape, array.ravel().tolist())
        tensors.append(tensor)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "time"])
    out = helper.make_tensor_value_info("out", dtype, ["batch", "time", D_IN])
    graph = helper.make_graph(nodes, "host", [ids], [out], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    if external is None:
        onnx.save(model, str(path))
    else:
        onnx.save(model, str(path), save_as_external_data=True, location=external, size_threshold=0)
    return path
