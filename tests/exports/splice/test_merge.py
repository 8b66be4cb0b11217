import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from sae_runtime.exports.graphs.graph import Graph
from sae_runtime.exports.splice.merge import add_prefix, insert_behind, merge, put_in_place, take_apart


def doubled_twice() -> ir.Graph:
    """x -> h = 2 x -> out = 2 h."""
    graph = Graph("host")
    h = graph.op("Add", x := graph.input("x", np.float32, ["n"]), x)
    graph.output(h, "h", np.float32, ["n"])
    graph.output(graph.op("Add", h, h), "out", np.float32, ["n"])
    return graph.model().graph


def raised(*, gives_y: bool = True) -> ir.Graph:
    """y = x + amount where amount > 0, and size = |x|; amount is 1 by default."""
    graph = Graph("part")
    x = graph.input("x", np.float32, ["n"])
    amount = graph.input("amount", np.float32, [1], default=[1.0])
    graph.output(graph.op("Abs", x), "size", np.float32, ["n"])
    if gives_y:
        (y,) = graph.either(
            "branch",
            graph.op("Greater", amount, graph.constant([0], np.float32)),
            lambda branch: [branch.op("Add", x, amount)],
            lambda branch: [branch.op("Identity", x)],
        )
        graph.output(y, "y", np.float32, ["n"])
    return graph.model().graph


def value_of(graph: ir.Graph, name: str) -> ir.Value:
    return next(value for node in graph for value in node.outputs if value.name == name)


def run(graph: ir.Graph, **feed: list[float]) -> dict[str, list[float]]:
    """All outputs by name."""
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: np.array(numbers, np.float32) for name, numbers in feed.items()})
    return {value.name: array.tolist() for value, array in zip(session.get_outputs(), outputs, strict=True)}


def test_taking_a_graph_apart_frees_everything_and_drops_the_required_defaults() -> None:
    graph = raised()
    part = take_apart(graph, required=True)
    assert not (graph.inputs or graph.outputs or graph.initializers or graph.num_nodes())
    assert part.x.name == "x" and part.y is not None and part.y.name == "y"
    assert [value.name for value in part.inputs] == ["amount"] and part.inputs[0].const_value is None
    assert [value.name for value in part.outputs] == ["size"]
    assert part.inputs[0] not in part.initializers and len(part.initializers) == 1
    assert [node.op_type for node in part.nodes] == ["Abs", "Greater", "If"]
    assert {node.op_type for node in part.all_nodes} == {"Abs", "Greater", "If", "Add", "Identity"}
    assert take_apart(raised()).inputs[0].const_value is not None, "others keep their defaults"
    assert take_apart(raised(gives_y=False)).y is None


def test_the_prefix_tells_public_names_from_inner_ones() -> None:
    part = take_apart(raised())
    add_prefix(part, "sae")
    assert [value.name for value in (*part.inputs, *part.outputs)] == ["sae_amount", "sae_size"]
    assert part.y is not None and part.y.name == "sae/y"
    assert all(str(node.name).startswith("sae/") for node in part.all_nodes)
    names = [value.name for node in part.all_nodes for value in node.outputs if value not in part.outputs]
    assert all(str(name).startswith("sae/") and str(name).count("sae/") == 1 for name in names)


@pytest.mark.parametrize("name", ["h", "x"])
def test_inserted_nodes_read_the_value_and_change_no_output_of_the_host(name: str) -> None:
    host = doubled_twice()
    value = host.inputs[0] if name == "x" else value_of(host, "h")
    part = take_apart(raised())
    add_prefix(part, "sae")
    insert_behind(host, part, value)
    size = {"x": [3.0], "h": [6.0]}[name]
    assert run(host, x=[-3]) == {"h": [-6], "out": [-12], "sae_size": size}
    assert [value.name for value in host.inputs] == ["x", "sae_amount"]


def test_readers_of_the_value_read_y_and_an_output_keeps_its_name() -> None:
    host = doubled_twice()
    h, part = value_of(host, "h"), take_apart(raised())
    add_prefix(part, "sae")
    insert_behind(host, part, h)
    assert part.y is not None
    put_in_place(host, part, h, part.y, "sae")
    assert (h.name, part.y.name) == ("sae/x", "h")
    assert part.y.shape == h.shape
    assert run(host, x=[3]) == {"h": [7], "out": [14], "sae_size": [6]}
    assert run(host, x=[3], sae_amount=[-5]) == {"h": [6], "out": [12], "sae_size": [6]}


def test_a_merged_graph_reads_and_changes_the_value() -> None:
    host = doubled_twice()
    merge(host, raised(), host.inputs[0], "sae")
    assert run(host, x=[3], sae_amount=[2]) == {"h": [10], "out": [20], "sae_size": [3]}
    host = doubled_twice()
    part = merge(host, raised(gives_y=False), value_of(host, "h"), "sae", required=True)
    assert part.y is None
    assert run(host, x=[3], sae_amount=[2]) == {"h": [6], "out": [12], "sae_size": [6]}
