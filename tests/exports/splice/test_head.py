"""The way from a place to the logits, in graphs as exporters and optimisers write them, against numpy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sae_runtime.exports.splice import promoted
from sae_runtime.exports.splice.head import Head, NoHead, find_head
from sae_runtime.exports.splice.host_graph import read_host
from sae_runtime.exports.splice.promoted import token_logits

D, TOKENS = 8, 21
RNG = np.random.default_rng(0)
Arrays = dict[str, NDArray[Any]]
ARRAYS: Arrays = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {
        "table": (TOKENS, D),
        "w": (D, D),
        "gain": (D,),
        "shift": (D,),
        "head": (D, TOKENS),
        "out": (D, 5),
        "narrow": (5, TOKENS),
        "head_bias": (TOKENS,),
    }.items()
}
ARRAYS |= {name: np.array([x], np.float32) for name, x in (("eps", 1e-6), ("one", 1), ("cap", 30))}
ARRAYS["axes"] = np.array([-1])
ARRAYS |= {"rows": ARRAYS["head"].T.copy(), "less": ARRAYS["gain"] - 1}
W_DEC = RNG.standard_normal((30, D)).astype(np.float32)

Node = tuple[str, str, str, dict[str, Any]]  # operator, inputs, outputs, attributes
BODY: list[Node] = [
    ("Gather", "table input_ids", "x0", {}),
    ("Relu", "x0", "relu", {}),
    ("MatMul", "relu w", "branch", {}),
    ("Add", "x0 branch", "x", {}),
]
LAYER_NORM: list[Node] = [("LayerNormalization", "x gain shift", "y", {"axis": -1})]
OLD_LAYER_NORM: list[Node] = [
    ("ReduceMean", "x axes", "mean", {"keepdims": 1}),
    ("Sub", "x mean", "centred", {}),
    ("Mul", "centred centred", "square", {}),
    ("ReduceMean", "square axes", "variance", {"keepdims": 1}),
    ("Add", "variance eps", "safe", {}),
    ("Sqrt", "safe", "size", {}),
    ("Div", "centred size", "normed", {}),
    ("Mul", "normed gain", "scaled", {}),
    ("Add", "scaled shift", "y", {}),
]
RMS: list[Node] = [
    ("Mul", "x x", "square", {}),
    ("ReduceMean", "square axes", "variance", {"keepdims": 1}),
    ("Add", "variance eps", "safe", {}),
    ("Sqrt", "safe", "size", {}),
    ("Reciprocal", "size", "inverse", {}),
    ("Mul", "inverse x", "normed", {}),
    ("Mul", "gain normed", "y", {}),
]
GEMMA: list[Node] = [*RMS[:-1], ("Add", "one less", "weight", {}), ("Mul", "normed weight", "y", {})]
SIMPLE: list[Node] = [("SimplifiedLayerNormalization", "x gain", "y", {"axis": -1})]
PLAIN: list[Node] = [("MatMul", "y head", "logits", {})]
TIED: list[Node] = [("Transpose", "rows", "turned", {"perm": [1, 0]}), ("MatMul", "y turned", "logits", {})]
CAPPED: list[Node] = [
    ("MatMul", "y head", "raw", {}),
    ("Add", "raw head_bias", "biased", {}),
    ("Div", "biased cap", "small", {}),
    ("Tanh", "small", "bent", {}),
    ("Mul", "bent cap", "logits", {}),
]
NARROW: list[Node] = [("MatMul", "y out", "less_wide", {}), ("MatMul", "less_wide narrow", "logits", {})]


def host(path: Path, nodes: Sequence[Node], arrays: Arrays | None = None, *, width: int = TOKENS) -> Any:
    """The graph of nodes, as a splice reads it."""
    domains = {"SkipSimplifiedLayerNormalization": "com.microsoft", "MatMulNBits": "com.microsoft"}
    made = [
        helper.make_node(kind, read.split(), gives.split(), name=f"/{kind}_{i}", domain=domains.get(kind), **attributes)
        for i, (kind, read, gives, attributes) in enumerate(nodes)
    ]
    used = {name for _, read, _, _ in nodes for name in read.split()}
    tensors = [numpy_helper.from_array(a, name) for name, a in {**ARRAYS, **(arrays or {})}.items() if name in used]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])
    given = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "t", width])]
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", D])
        for _, _, gives, _ in nodes
        for name in gives.split()
        if name in ("x", "y", "x0", "branch")
    ]
    graph = helper.make_graph(made, "host", [ids], given, tensors, value_info=shapes)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return read_host(path).model.graph


def head_of(graph: Any, place: str = "x0") -> Head:
    (value,) = [v for node in graph for v in node.outputs if v.name == place]
    return find_head(graph, value)


def truth(*, centred: bool, scale: float = 1, narrow: bool = False) -> NDArray[np.float64]:
    directions, arrays = W_DEC.astype(np.float64), {name: a.astype(np.float64) for name, a in ARRAYS.items()}
    if centred:
        directions = directions - directions.mean(axis=1, keepdims=True)
    read = directions * arrays["gain"]
    return scale * (read @ arrays["out"] @ arrays["narrow"] if narrow else read @ arrays["head"])


@pytest.mark.parametrize("norm", [LAYER_NORM, OLD_LAYER_NORM, RMS, GEMMA, SIMPLE])
@pytest.mark.parametrize("head", [PLAIN, TIED, CAPPED, NARROW])
def test_norms_and_heads_are_read_as_they_are_written(norm: list[Node], head: list[Node], tmp_path: Path) -> None:
    graph = host(tmp_path / "host.onnx", [*BODY, *norm, *head])
    expected = truth(centred=norm in (LAYER_NORM, OLD_LAYER_NORM), narrow=head is NARROW)
    for place in ("x0", "x", "branch"):  # the stream, the stream behind, and what a block adds to it
        made = token_logits(head_of(graph, place), W_DEC)
        np.testing.assert_array_equal(made.promoted_tokens, np.argsort(-expected, axis=1)[:, :10])
        np.testing.assert_array_equal(made.suppressed_tokens, np.argsort(expected, axis=1)[:, :10])
        np.testing.assert_allclose(made.promoted_logits, -np.sort(-expected, axis=1)[:, :10], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(made.suppressed_logits, np.sort(expected, axis=1)[:, :10], rtol=1e-4, atol=1e-5)


def test_a_norm_that_adds_and_positions_that_are_picked_are_passed(tmp_path: Path) -> None:
    body = [*BODY[:-1], ("SkipSimplifiedLayerNormalization", "x0 branch gain", "y", {"epsilon": 1e-6})]
    last = [("Gather", "y last", "z", {"axis": 1}), ("MatMul", "z head", "logits", {})]
    graph = host(tmp_path / "host.onnx", [*body, *last], {"last": np.array([-1])})
    found = token_logits(head_of(graph), W_DEC).promoted_tokens
    np.testing.assert_array_equal(found, np.argsort(-truth(centred=False), axis=1)[:, :10])


def test_half_weights_and_blocks_give_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = ARRAYS["head"].astype(np.float16)
    nodes: list[Node] = [*BODY, *SIMPLE, ("Cast", "half", "full", {"to": 1}), ("MatMul", "y full", "logits", {})]
    head = head_of(host(tmp_path / "host.onnx", nodes, {"half": half}))
    whole = token_logits(head, W_DEC)
    monkeypatch.setattr(promoted, "_FEATURES", 7)
    monkeypatch.setattr(promoted, "_TOKENS", 4)
    for name, array in token_logits(head, W_DEC).tensors().items():
        np.testing.assert_allclose(array, whole.tensors()[name], rtol=1e-6, atol=1e-6)


def test_equal_logits_go_by_token_and_a_small_vocabulary_gives_all() -> None:
    made = token_logits(Head((np.zeros((D, 3), np.float32),)), W_DEC)
    assert made.promoted_tokens.tolist() == [[0, 1, 2]] * 30 == made.suppressed_tokens.tolist()
    wide = token_logits(Head((np.zeros((D, 30_000), np.float32),)), W_DEC)
    assert (wide.promoted_tokens == np.arange(10)).all() and (wide.suppressed_tokens == np.arange(10)).all()


NBITS = {"K": D, "N": TOKENS, "bits": 4, "block_size": 16}
PACKED = {"packed": np.zeros((TOKENS, 1, 8), np.uint8), "scales": np.ones(TOKENS, np.float32)}


@pytest.mark.parametrize(
    ("nodes", "arrays", "why"),
    [
        ([("MatMulNBits", "y packed scales", "logits", NBITS)], PACKED, r"quantised \(MatMulNBits\)"),
        (
            [("DequantizeLinear", "bytes size", "w8", {}), ("MatMul", "y w8", "logits", {})],
            {"bytes": np.ones((D, TOKENS), np.int8), "size": np.float32(0.1)},
            "quantised",
        ),
        ([("Relu", "y", "z", {}), ("MatMul", "z head", "logits", {})], {}, "Relu stands between"),
        ([("MatMul", "y head", "raw", {}), ("Mul", "raw head_bias", "logits", {})], {}, "changed after its head"),
    ],
)
def test_hosts_without_a_float_head_say_so(nodes: list[Node], arrays: Arrays, why: str, tmp_path: Path) -> None:
    with pytest.raises(NoHead, match=why):
        head_of(host(tmp_path / "host.onnx", [*BODY, *SIMPLE, *nodes], arrays))


def test_classes_of_texts_and_vectors_are_no_logits_of_tokens(tmp_path: Path) -> None:
    for number, head in enumerate(("out", "w")):
        nodes: list[Node] = [*BODY, *SIMPLE, ("MatMul", f"y {head}", "logits", {})]
        graph = host(tmp_path / f"{number}.onnx", nodes, width=ARRAYS[head].shape[1])
        with pytest.raises(NoHead, match="no head that gives logits of tokens"):
            head_of(graph)


def test_a_place_that_is_not_added_to_the_stream_has_none(tmp_path: Path) -> None:
    graph = host(tmp_path / "host.onnx", [*BODY, *SIMPLE, *PLAIN])
    with pytest.raises(NoHead, match="does not write to the stream"):
        head_of(graph, "relu")
    with pytest.raises(NoHead, match="does not write to the stream|behind the head"):
        head_of(graph, "logits")
    twice = [*BODY, ("LayerNormalization", "x gain", "x2", {"axis": -1}), ("Relu", "x2", "r", {})]
    post: list[Node] = [*twice, ("Add", "x2 r", "x3", {}), ("LayerNormalization", "x3 gain", "y", {"axis": -1})]
    with pytest.raises(NoHead, match="does not write to the stream"):  # norms of blocks stand in the stream
        head_of(host(tmp_path / "post.onnx", [*post, *PLAIN]))
