"""The residual stream of a block in graphs that no exporter needs to write first."""

import onnx.parser
import onnx_ir as ir
import pytest

from sae_runtime.bundle.hooks import parse_hook
from sae_runtime.exports.splice.hook_tensor import find_hook

BLOCK = """<ir_version: 8, opset_import: ["" : 18]>
g (float[b, t, 4] x) => (float[b, t, 4] y)
<float[4, 4] w, float[b, t, 4] attended, float[b, t, 4] sum, float[b, t, 4] same, float[b, t, 4] made>
{
  ["/layers.0/attn/MatMul"] attended = MatMul(x, w)
  ["/layers.0/Add"] sum = Add(x, attended)
  ["/layers.0/norm/Cast"] same = Cast<to = 1>(sum)
  ["/layers.0/mlp/MatMul"] made = MatMul(READ, w)
  ["/layers.0/Add_1"] y = Add(same, made)
}"""


@pytest.mark.parametrize("read", ["sum", "same"])
def test_the_norm_may_share_its_cast_with_the_stream(read: str) -> None:
    """As the old exporter writes Llama and Granite: the norm's Cast to float32 does nothing, and both read it."""
    graph = ir.from_proto(onnx.parser.parse_model(BLOCK.replace("READ", read))).graph
    assert find_hook(graph, parse_hook("layers.0.resid_mid"), 4).name == "sum"


def test_blocks_in_parallel_that_share_a_cast_have_no_stream_between() -> None:
    graph = ir.from_proto(onnx.parser.parse_model(BLOCK.replace("READ", "x"))).graph
    with pytest.raises(ValueError, match="its attention and MLP read the same stream"):
        find_hook(graph, parse_hook("layers.0.resid_mid"), 4)
