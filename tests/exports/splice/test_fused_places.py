"""Places in graphs whose norms an optimiser fused with the sums before them, by the values that they must have."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.exports.splice.hook_tensor import find_hook

D = 8
Rows = NDArray[np.float64]


def norm(x: Rows, w: dict[str, Any], name: str) -> Rows:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + 1e-3) * w[f"{name}.weight"] + w[f"{name}.bias"])


class Blocks:
    """Two blocks of linear parts, with a norm before each part or behind it, as an optimiser writes them."""

    def __init__(self, *, post: bool) -> None:
        self.post, rng = post, np.random.default_rng(0)
        parts = [f"layer.{i}.{part}" for i in (0, 1) for part in ("attn.dense", "mlp.dense")]
        norms = [f"layer.{i}.{name}" for i in (0, 1) for name in ("one", "two")] + ["last"]
        self.weights = {f"{name}.weight": rng.normal(0, 0.6, (D, D)) for name in parts}
        self.weights |= {f"{name}.weight": rng.normal(1, 0.3, D) for name in norms}
        self.weights |= {f"{name}.bias": rng.normal(0, 0.5, D) for name in [*parts, *norms]}
        self.nodes: list[Any] = []
        self.model = self._post(parts, norms) if post else self._pre(parts, norms)

    def _linear(self, part: str, x: str) -> str:
        path = f"/{part.replace('.attn', '/attn').replace('.mlp', '/mlp').replace('.dense', '/dense')}/MatMul"
        self.nodes.append(helper.make_node("MatMul", [x, f"{part}.weight"], [f"{part}.out"], path))
        return f"{part}.out"

    def _fused(self, x: str, part: str, stream: str, name: str, total: str | None) -> str:
        inputs = [x, stream, f"{name}.weight", f"{name}.bias", f"{part}.bias"]
        outputs = [f"{name}.out", *(["", "", total] if total else [])]
        self.nodes.append(
            helper.make_node("SkipLayerNormalization", inputs, outputs, domain="com.microsoft", epsilon=1e-3)
        )
        return f"{name}.out"

    def _post(self, parts: list[str], norms: list[str]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", ["x"], ["start"], "/embed/Identity"))
        stream = "start"
        for part, name in zip(parts, norms, strict=False):
            stream = self._fused(self._linear(part, stream), part, stream, name, None)
        return self._made(stream)

    def _pre(self, parts: list[str], norms: list[str]) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", ["x"], ["start"], "/embed/Identity"))
        first = ["start", f"{norms[0]}.weight", f"{norms[0]}.bias"]
        path = f"/{norms[0].replace('.one', '/one')}/LayerNormalization"
        self.nodes.append(helper.make_node("LayerNormalization", first, ["normed"], path, epsilon=1e-3))
        stream, normed = "start", "normed"
        for part, name in zip(parts, norms[1:], strict=True):
            normed = self._fused(self._linear(part, normed), part, stream, name, f"{part}.sum")
            stream = f"{part}.sum"
        return self._made(normed)

    def _made(self, last: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [last], ["y"], "/head/Identity"))
        shape: list[str | int | None] = ["b", "t", D]
        inner = [name for node in self.nodes for name in node.output if name and name != "y"]
        graph = helper.make_graph(
            self.nodes,
            "blocks",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in self.weights.items()],
            value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inner],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def truth(self, x: Rows) -> dict[str, Rows]:
        """What each module gives, and the stream inside the blocks."""
        w, seen, stream = self.weights, dict[str, Rows](), x
        for i in (0, 1):
            for part, name in (("attn", "one"), ("mlp", "two")):
                read = stream if self.post else norm(stream, w, f"layer.{i}.{name}")
                dense = f"layer.{i}.{part}.dense"
                seen[dense] = read @ w[f"{dense}.weight"] + w[f"{dense}.bias"]
                stream = stream + seen[dense]
                if self.post:
                    stream = norm(stream, w, f"layer.{i}.{name}")
                seen[f"layer.{i}.{name}"] = stream if self.post else read
                if part == "attn" and not self.post:
                    seen[f"layer.{i}.resid_mid"] = stream
            seen[f"layer.{i}"] = stream
            if not self.post:
                seen[f"layer.{i}.resid_post"] = stream
        seen["layer.1.resid_pre"] = seen["layer.0"]
        return seen


HOOKS = [f"layer.{i}{end}" for i in (0, 1) for end in ("", ".resid_mid", ".resid_post", ".one", ".two")]
HOOKS += [f"layer.{i}.{part}{end}" for i in (0, 1) for part in ("attn", "mlp") for end in ("", ".dense")]
HOOKS += ["layer.1.resid_pre"]
FOUND = {
    True: {"layer.0", "layer.1", "layer.1.resid_pre"},
    False: {"layer.0", "layer.1", "layer.1.resid_pre", "layer.0.resid_mid", "layer.1.resid_mid", "layer.1.resid_post"},
}
"""By whether norms are behind the parts: what must not be refused."""


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("post", [True, False])
def test_a_place_beside_fused_norms_is_right_or_refused(post: bool, hook: str) -> None:
    blocks, x = Blocks(post=post), np.random.default_rng(1).normal(0, 1, (2, 3, D))
    model = ir.from_proto(blocks.model)
    try:
        value = find_hook(model.graph, parse_hook(hook), D)
    except ValueError as error:
        assert hook not in FOUND[post], error
        return
    model.graph.outputs.append(value)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run([value.name], {"x": x.astype(np.float32)})[0]
    np.testing.assert_allclose(got, blocks.truth(x)[hook], rtol=1e-4, atol=1e-5)
