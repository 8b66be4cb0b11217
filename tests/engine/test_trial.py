from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sae_runtime.engine.trial import run_on_made_up_inputs

Input = tuple[str, int, list[int | str | None]]


def session(inputs: list[Input], nodes: list[Any] | None = None) -> Any:
    """A graph that gives its inputs, after other nodes."""
    given = [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in inputs]
    same = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs]
    out = [helper.make_tensor_value_info(f"{name}_out", dtype, shape) for name, dtype, shape in inputs]
    graph = helper.make_graph([*(nodes or []), *same], "g", given, out)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_inputs_of_a_language_model_agree_in_their_sizes() -> None:
    feed, outputs = run_on_made_up_inputs(
        session(
            [
                ("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
                ("attention_mask", TensorProto.INT64, ["batch_size", "past_sequence_length + sequence_length"]),
                ("position_ids", TensorProto.INT32, ["batch_size", "sequence_length"]),
                ("token_type_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
                ("past_key_values.0.key", TensorProto.FLOAT16, ["batch_size", 2, "past_sequence_length", 16]),
                ("use_cache", TensorProto.BOOL, [1]),
                ("windows", TensorProto.DOUBLE, [None, "num_channels", "2 * sequence_length"]),
                ("scalar", TensorProto.INT64, []),
            ]
        ),
        batch=3,
        time=7,
    )
    assert {name: array.shape for name, array in feed.items()} == {
        "input_ids": (3, 7),
        "attention_mask": (3, 7),
        "position_ids": (3, 7),
        "token_type_ids": (3, 7),
        "past_key_values.0.key": (3, 2, 0, 16),
        "use_cache": (1,),
        "windows": (3, 3, 14),
        "scalar": (),
    }
    assert feed["attention_mask"].all() and not feed["token_type_ids"].any() and not feed["use_cache"].any()
    assert 0 <= feed["input_ids"].min() and feed["input_ids"].max() < 8 and len(np.unique(feed["input_ids"])) > 2
    assert feed["position_ids"].tolist() == [list(range(7))] * 3
    assert {name.removesuffix("_out") for name in outputs} == set(feed)


def test_the_width_of_keys_is_that_of_the_genai_config_beside_the_graph(tmp_path: Path) -> None:
    past: Input = ("past_key_values.0.key", TensorProto.FLOAT, ["batch", 2, "past_sequence_length", "kv_cache_dim"])
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {"head_size": 64}}}')
    assert run_on_made_up_inputs(session([past]), tmp_path)[0]["past_key_values.0.key"].shape == (2, 2, 0, 64)
    (tmp_path / "genai_config.json").write_text("[]")
    assert run_on_made_up_inputs(session([past]), tmp_path)[0]["past_key_values.0.key"].shape == (2, 2, 0, 0)


def test_an_image_takes_the_size_that_the_graph_takes() -> None:
    pixels: Input = ("pixel_values", TensorProto.FLOAT, ["batch", "channels", "height", "width"])
    line = helper.make_node("Constant", [], ["line"], value_floats=[0.0] * 32)
    feed, _ = run_on_made_up_inputs(session([pixels], [line, helper.make_node("Add", ["pixel_values", "line"], ["x"])]))
    assert feed["pixel_values"].shape == (2, 3, 32, 32)


def test_a_graph_that_takes_no_made_up_inputs_is_named_with_the_reason() -> None:
    text = session([("text", TensorProto.STRING, ["batch"])])
    with pytest.raises(ValueError, match=r"no inputs could be made up that suit the graph \(.*string"):
        run_on_made_up_inputs(text)
    gather = helper.make_node("Gather", ["ids", "big"], ["lost"])
    big = helper.make_node("Constant", [], ["big"], value_ints=[99])
    with pytest.raises(ValueError, match=r"no inputs could be made up that suit the graph \(.*Gather"):
        run_on_made_up_inputs(session([("ids", TensorProto.INT64, ["batch"])], [big, gather]))
