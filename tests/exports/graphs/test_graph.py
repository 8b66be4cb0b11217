import numpy as np
import onnx
import pytest

from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.external import external
from sae_runtime.exports.graphs.graph import IR_VERSION, OPSET, Graph


def test_equal_constants_are_kept_once() -> None:
    graph = Graph("g")
    assert graph.constant(0, np.int64) is graph.constant(0, np.int64)
    others = [graph.constant(0, np.float32), graph.constant([0], np.int64), graph.constant([[0]], np.int64)]
    assert len({value.name for value in [graph.constant(0, np.int64), *others]}) == 4


def test_weights_are_kept_once_and_by_reference() -> None:
    graph = Graph("g")
    spec = TensorSpec("F64", (2, 3), offset=104, size=48)
    value = graph.weight(external("W", "some.safetensors", spec))
    assert graph.weight(external("W", "some.safetensors", spec)) is value
    graph.output(graph.op("Neg", value), "y", np.float64, [2, 3])
    (tensor,) = onnx_model(graph).graph.initializer
    assert (tensor.data_type, list(tensor.dims)) == (onnx.TensorProto.DOUBLE, [2, 3])
    assert {entry.key: entry.value for entry in tensor.external_data} == {
        "location": "some.safetensors",
        "offset": "104",
        "length": "48",
    }


def test_defaults_make_inputs_optional() -> None:
    graph = Graph("g")
    x = graph.input("x", np.float32, ["n"])
    a = graph.input("a", np.float32, [1], default=[2.0])
    graph.output(graph.op("Mul", x, a), "y", np.float32, ["n"])
    model = onnx_model(graph)
    assert [value.name for value in model.graph.input] == ["x", "a"]
    assert [tensor.name for tensor in model.graph.initializer] == ["a"]
    assert model.ir_version == IR_VERSION and model.opset_import[0].version == OPSET


def test_no_two_values_share_a_name() -> None:
    graph = Graph("g")
    x = graph.input("x", np.float32, ["n", 4])
    values, indices = graph.ops("TopK", 2, graph.op("Relu", graph.op("Relu", x)), graph.constant([2], np.int64))
    graph.output(values, "values", np.float32, ["n", 2])
    graph.output(indices, "indices", np.int64, ["n", 2])
    names = [name for node in onnx_model(graph).graph.node for name in node.output]
    assert len(set(names)) == len(names) == 4
    assert names[-2:] == ["values", "indices"]


def test_a_type_that_graphs_do_not_hold_is_refused() -> None:
    with pytest.raises(KeyError, match="BF16"):
        external("W", "some.safetensors", TensorSpec("BF16", (1,), 0, 2))


def onnx_model(graph: Graph) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.to_proto(graph.model())
