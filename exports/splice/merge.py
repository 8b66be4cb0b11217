"""Move the nodes of a small graph into the graph of a host model, behind one of its values.

host:   producer --value--> readers              part:   x, inputs --> nodes --> y, outputs

merged: producer --value--> nodes --y--> readers,  with the inputs and outputs of the part beside the host's
"""

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Part:
    """The parts of a small graph, free to go into another graph."""

    x: ir.Value  # the nodes read it; the value of the host replaces it
    y: ir.Value | None  # replaces that value for its readers
    inputs: list[ir.Value]  # without x
    outputs: list[ir.Value]  # without y
    initializers: list[ir.Value]
    nodes: list[ir.Node]
    all_nodes: list[ir.Node]  # with the nodes in branches


def merge(host: ir.Graph, graph: ir.Graph, value: ir.Value, name: str, *, required: bool = False) -> Part:
    """Move a small graph into the host behind a value, and return its parts with their new names.

    >>> from sae_runtime.exports.graphs.graph import Graph
    >>> host, small = Graph("host"), Graph("small")
    >>> h = host.op("Relu", host.input("a", np.float32, ["n"]))
    >>> host.output(h, "h", np.float32, ["n"])
    >>> small.output(small.op("Neg", small.input("x", np.float32, ["n"])), "y", np.float32, ["n"])
    >>> merged = host.model().graph
    >>> _ = merge(merged, small.model().graph, h, "sae")
    >>> [node.op_type for node in merged], [value.name for value in merged.outputs]
    (['Relu', 'Neg'], ['h'])

    Args:
        host: the graph that grows.
        graph: the small graph, whose first input is x; it is empty afterwards.
        value: the value of the host that the small graph reads as x.
        name: the beginning of the new names.
        required: the inputs lose their defaults.
    """
    part = take_apart(graph, required=required)
    add_prefix(part, name)
    put_back(host, value, part, name)
    return part


def take_apart(graph: ir.Graph, *, required: bool = False) -> Part:
    """Free everything in a graph; required inputs lose their defaults."""
    x, *inputs = graph.inputs
    if required:
        for value in inputs:
            value.const_value = None
    part = Part(
        x=x,
        y=next((value for value in graph.outputs if value.name == "y"), None),
        inputs=inputs,
        outputs=[value for value in graph.outputs if value.name != "y"],
        initializers=[value for value in graph.initializers.values() if value.const_value is not None],
        nodes=list(graph),
        all_nodes=list(ir.traversal.RecursiveGraphIterator(graph)),
    )
    graph.inputs.clear()
    graph.outputs.clear()
    graph.initializers.clear()
    graph.remove(part.nodes)
    return part


def put_back(host: ir.Graph, value: ir.Value, part: Part, name: str) -> None:
    """Put a part behind a value of the host."""
    insert_behind(host, part, value)
    if part.y is not None:
        put_in_place(host, part, value, part.y, name)


def add_prefix(part: Part, name: str) -> None:
    """Name inputs and outputs NAME_..., for callers, and everything else NAME/..."""
    for node in part.all_nodes:
        node.name = f"{name}/{node.name}"
    public = [*part.inputs, *part.outputs]
    inner = [value for node in part.all_nodes for value in node.outputs]
    for value in dict.fromkeys([*public, *part.initializers, *inner]):
        value.name = f"{name}_{value.name}" if value in public else f"{name}/{value.name}"


def insert_behind(host: ir.Graph, part: Part, value: ir.Value) -> None:
    """Put the nodes of the part behind the producer of a value; they read the value instead of x."""
    ir.convenience.replace_all_uses_with(part.x, value)
    for initializer in part.initializers:
        host.register_initializer(initializer)
    producer = value.producer()
    if producer is None:
        host.insert_before(host[0], part.nodes)
    else:
        host.insert_after(producer, part.nodes)
    host.inputs.extend(part.inputs)
    host.outputs.extend(part.outputs)


def put_in_place(host: ir.Graph, part: Part, value: ir.Value, y: ir.Value, name: str) -> None:
    """Let the readers of the value outside the part read y; an output of the host keeps its name."""
    # onnxruntime fuses the Add and LayerNorm after y only where it knows the shape of y.
    y.shape = None if value.shape is None else value.shape.copy()
    for user, index in tuple(value.uses()):
        if user not in part.all_nodes:
            user.replace_input_with(index, y)
    if value.is_graph_output():
        host.outputs[:] = [y if output is value else output for output in host.outputs]
        value.name, y.name = f"{name}/x", value.name
