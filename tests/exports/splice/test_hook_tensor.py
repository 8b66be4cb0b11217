import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import D_IN
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tiny_host import host_graph

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.exports.splice.hook_tensor import find_hook


def found(kind: str, hook: str, width: int = D_IN) -> ir.Value:
    return find_hook(ir.load(host_graph(kind)).graph, parse_hook(hook), width)


def scopes(value: ir.Value) -> str:
    node = value.producer()
    assert node is not None
    return f"{node.op_type} of {node.metadata_props['pkg.torch.onnx.name_scopes'].split(', ')[-2]}"


@pytest.mark.parametrize(
    ("kind", "hooks", "place"),
    [
        ("bert", ["encoder.layer.0", "bert.encoder.layer.0", "model.encoder.layer.0"], "layer.0.output.LayerNorm'"),
        ("bert", ["encoder.layer.1.resid_pre", "blocks.1.hook_resid_pre"], "LayerNormalization of .*layer.0.output"),
        ("bert", ["encoder.layer.0.attention"], "layer.0.attention.output.LayerNorm'"),
        ("gpt2", ["h.0", "transformer.h.0", "h.0.resid_post", "blocks.0.hook_resid_post"], "Add of .*transformer.h.0'"),
        ("gpt2", ["h.1.resid_pre", "blocks.1.hook_resid_pre"], "Add of .*transformer.h.0'"),
        ("gpt2", ["h.1.resid_mid", "blocks.1.hook_resid_mid"], "Add of .*transformer.h.1'"),
        ("gpt2", ["h.0.resid_pre"], "Add of .*transformer'"),
        ("gpt2", ["h.1.mlp"], "h.1.mlp.c_proj'"),
        ("gpt2", ["h.1.attn"], "h.1.attn.c_proj'"),
    ],
)
def test_a_hook_by_module_block_or_transformer_lens_finds_its_tensor(
    kind: str, hooks: Sequence[str], place: str
) -> None:
    values = [found(kind, hook) for hook in hooks]
    assert len({value.name for value in values}) == 1
    assert re.search(place, scopes(values[0])), scopes(values[0])


def test_residual_hooks_of_neighbouring_blocks_share_their_tensors() -> None:
    pre, mid, post = (found("gpt2", f"h.1.resid_{place}") for place in ("pre", "mid", "post"))
    assert len({pre.name, mid.name, post.name}) == 3
    assert found("gpt2", f"tensor:{mid.name}").name == mid.name
    assert pre.name == found("gpt2", "h.0").name and post.name == found("gpt2", "h.1").name


@pytest.mark.parametrize(
    ("kind", "hook", "message"),
    [
        ("bert", "encoder.layer.9", "no module 'encoder.layer.9'; close names are .*encoder.layer.1"),
        ("bert", "dense", "several modules, .*attention.output.dense.*; give more of it"),
        ("bert", "encoder.layer.0.resid_post", "LayerNormalization, so it has no resid_post; hook a module, such as"),
        ("bert", "encoder.layer.0.intermediate", "of width 32, this SAE expects width 24"),
        ("bert", "blocks.7.hook_resid_pre", "names no block .* one of model.encoder.layer.0, model.encoder.layer.1"),
        ("bert", "tensor:layer_norm_99", "no tensor 'layer_norm_99'; close names are layer_norm"),
        ("bert", "tensor:input_ids", r"input_ids is INT64 .*, expected float \[b, t, 24\]"),
        ("gpt2", "h.0.attn.c_attn", "of width 72, this SAE expects width 24|not one tensor but .*; hook tensor:NAME"),
        ("gpt2", "h.0.ln_9", "no module 'h.0.ln_9'"),
    ],
)
def test_a_hook_that_names_no_tensor_or_several_lists_candidates(kind: str, hook: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(kind, hook)


def fused(simple: bool) -> onnx.ModelProto:
    """Two blocks as onnxruntime-genai builds them: every sum of the stream is inside the next norm."""
    rng, weights = np.random.default_rng(0), {}

    def weight(name: str, *shape: int) -> str:
        weights[name] = rng.normal(1, 0.3, shape).astype(np.float32)
        return name

    def norm(name: str, x: str, skip: str, total: str | None) -> Any:
        kind = "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization"
        more = [weight(f"{name}.bias", 8)] if simple else [weight(f"{name}.beta", 8), weight(f"{name}.bias", 8)]
        inputs = [x, skip, weight(f"{name}.weight", 8), *more]
        outputs = [f"/{name}/output_0", *(["", "", total] if total else [])]
        return helper.make_node(kind, inputs, outputs, f"/{name}/SkipLayerNorm", domain="com.microsoft", epsilon=1e-3)

    def linear(name: str, x: str) -> Any:
        return helper.make_node("MatMul", [x, weight(f"{name}.w", 8, 8)], [f"/{name}/output_0"], f"/{name}/MatMul")

    nodes = [
        linear("embed", "x"),
        linear("layers.0/mlp", "/embed/output_0"),
        norm("layers.1/input_layernorm", "/embed/output_0", "/layers.0/mlp/output_0", "one"),
        linear("layers.1/attn", "/layers.1/input_layernorm/output_0"),
        norm("layers.1/post_attention_layernorm", "one", "/layers.1/attn/output_0", "two"),
        linear("layers.1/mlp", "/layers.1/post_attention_layernorm/output_0"),
        norm("layers.2/final_norm_layernorm", "two", "/layers.1/mlp/output_0", None),
        helper.make_node("Identity", ["/layers.2/final_norm_layernorm/output_0"], ["y"], "/head/Identity"),
    ]
    shape: list[str | int | None] = ["b", "t", 8]
    inner = [name for node in nodes for name in node.output if name and name != "y"]
    graph = helper.make_graph(
        nodes,
        "fused",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inner],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def outputs(model: onnx.ModelProto, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("simple", [True, False])
@pytest.mark.parametrize(
    ("hook", "inside"),
    [
        ("layers.1.resid_pre", "one"),
        ("layers.0", "one"),
        ("layers.1.resid_mid", "two"),
        ("blocks.1.hook_resid_mid", "two"),
        ("layers.1", None),
        ("layers.1.resid_post", None),
    ],
)
def test_a_fused_norm_is_taken_apart_and_the_output_stays(simple: bool, hook: str, inside: str | None) -> None:
    proto = fused(simple)
    if inside is not None:  # the sum as the fused graph has it
        proto.graph.output.append(helper.make_tensor_value_info(inside, TensorProto.FLOAT, ["b", "t", 8]))
    model = ir.from_proto(proto)
    value = find_hook(model.graph, parse_hook(hook), 8)
    producer = value.producer()
    assert producer is not None and producer.op_type == "Add"
    later = ir.from_proto(ir.to_proto(model))  # a second splice finds the sum again
    assert {find_hook(graph, parse_hook(hook), 8).name for graph in (model.graph, later.graph)} == {value.name}
    if inside is None:
        model.graph.outputs.append(value)
    x = np.random.default_rng(1).normal(0, 1, (2, 3, 8)).astype(np.float32)
    before, after = outputs(proto, x), outputs(ir.to_proto(model), x)
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-4, atol=1e-5)
    if inside is not None:
        np.testing.assert_allclose(after[value.name or ""], before[inside], rtol=1e-5)
    norms = [node.op_type for node in model.graph if "LayerNorm" in node.op_type]
    assert sum(kind.startswith("Skip") for kind in norms) == 2, "another norm was taken apart too"
    consumers = {use.node.op_type for use in value.uses()}
    assert consumers >= {"SimplifiedLayerNormalization" if simple else "LayerNormalization"}


def test_a_graph_without_module_names_asks_for_a_tensor_hook(tmp_path: Path) -> None:
    proto = fused(True)
    for node in proto.graph.node:
        node.name = ""
    with pytest.raises(ValueError, match="names no modules: .* hook tensor:NAME, such as /embed/output_0"):
        find_hook(ir.from_proto(proto).graph, parse_hook("layers.1"), 8)
