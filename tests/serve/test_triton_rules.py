"""The rules of Triton's ONNX backend, each broken once, and the reader of config.pbtxt."""

import dataclasses
from typing import Any

import pytest

from sae_runtime.serve.triton.config import ConfigTensor, ModelConfig, from_text, read_message
from sae_runtime.serve.triton.rules import Signature, faults

# The rules of the ONNX backend. The graph takes x and indices, may be given k and levels, and gives y and sure.
GRAPH = Signature(
    required={"x": ("FP32", (-1, 8)), "indices": ("INT64", (-1, -1))},
    defaulted={"k": ("INT64", (1,)), "levels": ("FP32", ())},
    outputs={"y": ("FP32", (-1, 8)), "sure": ("BOOL", (-1,))},
)
BATCHED = ModelConfig(
    name="m",
    backend="onnxruntime",
    max_batch_size=4,
    inputs=(ConfigTensor("x", "FP32", (8,)), ConfigTensor("indices", "INT64", (5,))),
    outputs=(ConfigTensor("y", "FP32", (8,)), ConfigTensor("sure", "BOOL", (1,), reshape=())),
)
WHOLE = dataclasses.replace(
    BATCHED,
    max_batch_size=0,
    inputs=(
        ConfigTensor("x", "FP32", (-1, 8)),
        ConfigTensor("indices", "INT64", (-1, -1)),
        ConfigTensor("k", "INT64", (1,), optional=True),
        ConfigTensor("levels", "FP32", (1,), optional=True),
    ),
    outputs=(ConfigTensor("y", "FP32", (-1, 8)), ConfigTensor("sure", "BOOL", (-1,))),
)


def changed(config: ModelConfig, which: str, /, **settings: Any) -> ModelConfig:
    """The configuration with one tensor changed."""
    tensors: dict[str, Any] = {
        part: tuple(dataclasses.replace(t, **settings) if t.name == which else t for t in getattr(config, part))
        for part in ("inputs", "outputs")
    }
    return dataclasses.replace(config, **tensors)


def test_sound_configurations_have_no_faults() -> None:
    for config in (BATCHED, WHOLE, dataclasses.replace(WHOLE, inputs=WHOLE.inputs[:2])):
        assert list(faults(config, GRAPH)) == []


@pytest.mark.parametrize(
    "config, said",
    [
        (dataclasses.replace(BATCHED, inputs=BATCHED.inputs[:1]), "'indices' has no default"),
        (changed(WHOLE, "x", optional=True), "'x' has no default"),
        (changed(WHOLE, "k", optional=False), "k has a default in the graph"),
        (dataclasses.replace(BATCHED, inputs=WHOLE.inputs), "k is optional, for which max_batch_size must be 0"),
        (changed(BATCHED, "x", name="z"), "no input z"),
        (changed(BATCHED, "y", name="z"), "no output z"),
        (changed(BATCHED, "x", datatype="FP64"), "input x is FP64, and the graph has FP32"),
        (changed(BATCHED, "y", datatype="FP16"), "output y is FP16"),
        (changed(BATCHED, "x", dims=(7,)), "input x has the sizes [-1, 7]"),
        (changed(BATCHED, "x", dims=(-1,)), "input x has the sizes [-1, -1]"),
        (changed(BATCHED, "x", dims=(2, 8)), "input x has the sizes [-1, 2, 8]"),
        (changed(WHOLE, "y", dims=(4, 8)), "output y has the sizes [4, 8]"),
        (changed(WHOLE, "sure", dims=()), "output sure has no dims"),
        (changed(BATCHED, "sure", reshape=None), "output sure has the sizes [-1, 1]"),
        (changed(WHOLE, "levels", dims=(2,)), "levels has the sizes [2]"),
        (changed(BATCHED, "indices", name="x"), "'x' is declared 2 times"),
        (dataclasses.replace(BATCHED, outputs=()), "no output"),
    ],
)
def test_each_broken_rule_has_its_sentence(config: ModelConfig, said: str) -> None:
    assert any(said in fault for fault in faults(config, GRAPH)), list(faults(config, GRAPH))


@pytest.mark.parametrize(
    "text",
    ["}", "a", "a: ", "a {", "a: [1", "a: ]", ": 1", "a: {", '"a": 1', "a: \x00", "a: 'x'", "a {" * 60 + "}" * 60],
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_message(text)


def test_reader_takes_forms_that_people_write() -> None:
    text = """
    # a comment
    name : "a#b"; backend: "python"
    max_batch_size:8,
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }, { name: "y", data_type: TYPE_STRING, dims: 4 dims: 5 } ]
    output { name: "z" data_type: TYPE_BOOL dims: [ 1 ] reshape: { shape: [ ] } }
    instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]
    """
    config = from_text(text)
    assert (config.name, config.max_batch_size, config.instances, config.device) == ("a#b", 8, 2, "GPU")
    assert [tensor.dims for tensor in config.inputs] == [(3, -1), (4, 5)]
    assert config.outputs[0].reshape == ()
