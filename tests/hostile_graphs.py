"""Graphs that a stranger might put into a bundle, made from a graph that our exporter wrote.

Bombs, graphs that end the process of some onnxruntime, and graphs that compute something else than the SAE.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Change = Callable[[onnx.ModelProto], None]
MANY = 100_000


def hostile(graph: bytes, kind: str) -> bytes:
    """The graph encode.onnx of a threshold SAE, changed in one of the ways of `KINDS`."""
    model = onnx.load_model_from_string(graph)
    CHANGES[kind](model)
    return bytes(model.SerializeToString())


def raw(kind: str, graph: bytes) -> bytes:
    """Bytes that are no whole graph."""
    return {
        "empty": b"",
        "text": b"no graph",
        "cut": graph[: len(graph) // 2],
        "long": b"\x0a" * 9_000_000,
        "a field of every graph, often": graph + b"\x08\x0a" * MANY,
        "endless number": b"\xff" * 100,
        "a graph twice": graph + graph,
        "a thousand graphs in graphs": b"\x08\x0a\x42\x04\x0a\x00\x10\x15" + _field(7, _nested(1000)),
    }[kind]


def _nested(depth: int) -> bytes:
    """A graph whose only node has a graph as its attribute, and so on."""
    graph = b""
    for _ in range(depth):
        attribute = _field(1, b"body") + _field(6, graph) + b"\xa0\x01\x05"
        graph = _field(1, _field(4, b"Loop") + _field(5, attribute))
    return graph


def _field(number: int, content: bytes) -> bytes:
    size, length = b"", len(content)
    while length >= 0x80:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


RAW = (
    "a thousand graphs in graphs",
    "empty",
    "text",
    "cut",
    "long",
    "a field of every graph, often",
    "endless number",
    "a graph twice",
)


def _constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _values(model: onnx.ModelProto) -> str:
    """The value whose first rows are the output `values`."""
    return str(next(node.input[0] for node in model.graph.node if node.output[0] == "values"))


def _through(model: onnx.ModelProto, nodes: list[onnx.NodeProto], made: str) -> None:
    """Let the output `values` be made of `made`, which new nodes before it make."""
    last = next(n for n, node in enumerate(model.graph.node) if node.output[0] == "values")
    model.graph.node[last].input[0] = made
    for node in reversed(nodes):
        model.graph.node.insert(last, node)


def _loop(model: onnx.ModelProto) -> None:
    flag, number = (helper.make_tensor_value_info(n, t, []) for n, t in (("go", 9), ("i", 7)))
    kept = helper.make_node("Identity", ["go"], ["go_on"])
    body = helper.make_graph([kept], "body", [number, flag], [helper.make_tensor_value_info("go_on", 9, [])])
    trips, go = _constant(model, "trips", np.array(2**63 - 1)), _constant(model, "true", np.array(True))
    model.graph.node.insert(0, helper.make_node("Loop", [trips, go], [], body=body))


def _functions(model: onnx.ModelProto) -> None:
    for n in range(60):
        inner = [helper.make_node("Add", ["x", "x"], ["y"])]
        if n:
            inner = [
                helper.make_node(f"f{n - 1}", ["x"], ["z"], domain="ours"),
                helper.make_node(f"f{n - 1}", ["z"], ["y"], domain="ours"),
            ]
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ours", 1)]
        model.functions.append(helper.make_function("ours", f"f{n}", ["x"], ["y"], inner, opsets))
    model.opset_import.append(helper.make_opsetid("ours", 1))
    _through(model, [helper.make_node("f59", [_values(model)], ["big"], domain="ours")], "big")


def _large_constant(model: onnx.ModelProto) -> None:
    shape = _constant(model, "huge", np.array([1 << 18, 1 << 12]))
    nodes = [helper.make_node("ConstantOfShape", [shape], ["big"])]
    _through(model, [*nodes, helper.make_node("Identity", [_values(model)], ["same"])], "same")


def _nodes(model: onnx.ModelProto) -> None:
    names = [_values(model), *(f"v{n}" for n in range(MANY))]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in zip(names, names[1:], strict=False)]
    _through(model, [], names[-1])
    model.graph.node.extend(nodes)


def _deep(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", [_values(model)], ["o"])], "g", [], [helper.make_tensor_value_info("o", 1, None)]
    )
    condition = _constant(model, "true", np.array(True))
    for n in range(8):  # protobuf refuses messages that are deeper than `_nested` makes them
        node = helper.make_node(
            "If", [condition], [f"o{n}"], then_branch=inner, else_branch=inner if not n else _leaf()
        )
        inner = helper.make_graph([node], "g", [], [helper.make_tensor_value_info(f"o{n}", 1, None)])
    _through(model, [helper.make_node("If", [condition], ["d"], then_branch=inner, else_branch=_leaf())], "d")


def _leaf() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["l"])], "l", [], [_info("l")])


def _info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _doubling(model: onnx.ModelProto) -> None:
    names = [_values(model), *(f"v{n}" for n in range(40))]
    pairs = zip(names, names[1:], strict=False)
    _through(model, [helper.make_node("Concat", [a, a], [b], axis=1) for a, b in pairs], names[-1])


def _operator(kind: str, *others: np.ndarray) -> Change:
    def change(model: onnx.ModelProto) -> None:
        more = [_constant(model, f"more{n}", array) for n, array in enumerate(others)]
        _through(model, [helper.make_node(kind, [_values(model), *more], ["big"])], "big")

    return change


def _range(model: onnx.ModelProto) -> None:
    ends = [_constant(model, f"end{n}", np.array(end)) for n, end in enumerate((0, 1 << 40, 1))]
    _through(model, [helper.make_node("Range", ends, ["big"])], "big")


def _fixed_slots(model: onnx.ModelProto) -> None:
    """However many slots the caller asks for, give one."""
    one = _constant(model, "one_slot", np.array([1]))
    for node in model.graph.node:
        for n, name in enumerate(node.input):
            node.input[n] = one if name == "slots" else name


def _cycle(model: onnx.ModelProto) -> None:
    first, last = model.graph.node[3], model.graph.node[-3]
    first.input[0] = last.output[0]


def _numbers(change: Callable[[np.ndarray], np.ndarray], name: str) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))

    return apply


def _tensor(**fields: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "slots")
        for name, value in fields.items():
            if isinstance(value, list):
                getattr(tensor, name)[:] = value
            else:
                setattr(tensor, name, value)

    return change


def _external(name: str, **entries: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)

    return change


def _encoder_of_decoder(model: onnx.ModelProto) -> None:
    """W_enc reads the bytes of another tensor of the same file."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    offset = next(entry.value for entry in tensors["b_dec"].external_data if entry.key == "offset")
    _external("W_enc", offset=offset)(model)


def _node(kind: str, **fields: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == kind)
        for name, value in fields.items():
            setattr(node, name, value)

    return change


def _attribute(value: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Concat")
        node.attribute[0].i = value

    return change


def _output(dims: list[str | int | None], dtype: int = TensorProto.FLOAT) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.output[1].CopyFrom(helper.make_tensor_value_info("values", dtype, dims))

    return change


def _string(model: onnx.ModelProto) -> None:
    text = numpy_helper.from_array(np.array(["a" * 1000], object), "slots")
    next(tensor for tensor in model.graph.initializer if tensor.name == "slots").CopyFrom(text)


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(model.graph)


def _sparse(model: onnx.ModelProto) -> None:
    values, indices = (numpy_helper.from_array(np.array([1]), name) for name in ("s", "i"))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def _unused(model: onnx.ModelProto) -> None:
    _constant(model, "unused", np.zeros(1000))


def _lie(model: onnx.ModelProto) -> None:
    made = model.graph.node[5].output[0]
    model.graph.value_info.append(helper.make_tensor_value_info(made, TensorProto.DOUBLE, [1, 1]))


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node[-1])


def _input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n"]))


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 8


def _version(model: onnx.ModelProto) -> None:
    model.ir_version = 2**62


def _reversed(model: onnx.ModelProto) -> None:
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


CHANGES: dict[str, Change] = {
    "a loop of 2^63 trips": _loop,
    "functions that double": _functions,
    "a constant of 4 GiB": _large_constant,
    "100,000 nodes": _nodes,
    "graphs in graphs": _deep,
    "concatenations that double": _doubling,
    "Expand": _operator("Expand", np.array([1 << 16, 1 << 16, 1, 1])),
    "Tile": _operator("Tile", np.array([1 << 16, 1 << 16])),
    "Pad": _operator("Pad", np.array([0, 0, 0, 1 << 40])),
    "Range": _range,
    "slots are ignored": _fixed_slots,
    "a cycle": _cycle,
    "nodes in reverse": _reversed,
    "a huge attribute": _attribute(2**62),
    "a negative attribute": _attribute(-(2**63)),
    "more columns": _numbers(lambda a: a * (1 << 40), "int64_1_[24]"),
    "slots of another type": _numbers(lambda a: a.astype(np.float32), "slots"),
    "other slots": _numbers(lambda a: a + 1, "slots"),
    "text for slots": _string,
    "a negative size": _tensor(dims=[-1]),
    "two negative sizes": _tensor(dims=[-1, -1]),
    "a huge size": _tensor(dims=[2**62]),
    "no numbers": _tensor(raw_data=b""),
    "an unknown type": _tensor(data_type=99),
    "another file": _external("W_enc", location="sample.safetensors"),
    "a file elsewhere": _external("W_enc", location="/etc/passwd"),
    "the bytes of another tensor": _encoder_of_decoder,
    "an offset beyond the file": _external("W_enc", offset=str(2**63)),
    "no number as offset": _external("W_enc", offset="-1"),
    "a shorter length": _external("W_enc", length="4"),
    "another operator": _node("Relu", op_type="Neg"),
    "an operator of another domain": _node("Relu", domain="com.microsoft"),
    "an operator that does not exist": _node("Relu", op_type="Relu" * 1000),
    "an output of another rank": _output(["n"]),
    "an output of another type": _output(["n", "slots"], TensorProto.DOUBLE),
    "an output of one size": _output(["n", 2**40]),
    "one more input": _input,
    "training": _training,
    "sparse weights": _sparse,
    "a constant without use": _unused,
    "a type of a value": _lie,
    "a name twice": _twice,
    "another opset": _opset,
    "another version": _version,
}
KINDS = tuple(CHANGES)
