"""Move the nodes of a small graph into a host graph, behind one of its values.

host:   producer --value--> readers              part:   x, inputs --> nodes --> y, outputs

merged: producer --value--> nodes --y--> readers,  with the inputs and outputs of the part beside the host's
"""

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Part:
    """What a small graph was made of, free to go into another graph."""

    x: ir.Value  # stands for the value of the host
    y: ir.Value | None  # takes the place of that value
    inputs: list[ir.Value]  # without x
    outputs: list[ir.Value]  # without y
    initializers: list[ir.Value]
    nodes: list[ir.Node]
    all_nodes: list[ir.Node]  # those in branches too


def merge(host: ir.Graph, graph: ir.Graph, value: ir.Value, name: str, required: Collection[str] = ()) -> Part:
    """Move a small graph into the host behind a value, and give its parts, with their new names.

    Args:
        host: the graph that grows.
        graph: the small graph, whose first input is x; it is empty afterwards.
        value: the value of the host that x stands for.
        name: what the new names begin with.
        required: the inputs that lose their defaults.
    """
    part = take_apart(graph, required)
    add_prefix(part, name)
    insert_behind(host, part, value)
    if part.y is not None:
        put_in_place(host, part, value, part.y, name)
    return part


def take_apart(graph: ir.Graph, required: Collection[str] = ()) -> Part:
    """Free everything in a graph; the required inputs lose their defaults."""
    x, *inputs = graph.inputs
    for value in inputs:
        if value.name in required:
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


def add_prefix(part: Part, name: str) -> None:
    """Name inputs and outputs NAME_..., for callers, and everything else NAME/..."""
    for node in part.all_nodes:
        node.name = f"{name}/{node.name}"
    public = [*part.inputs, *part.outputs]
    inner = [value for node in part.all_nodes for value in node.outputs]
    for value in dict.fromkeys([*public, *part.initializers, *inner]):
        value.name = f"{name}_{value.name}" if value in public else f"{name}/{value.name}"


def insert_behind(host: ir.Graph, part: Part, value: ir.Value) -> None:
    """Let the nodes of the part stand behind the producer of a value and read the value where they read x."""
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
    """Let all that read the value outside the part read y; an output of the host keeps its name."""
    # Else onnxruntime does not see that y is as large as x, and keeps the Add and LayerNorm behind it apart.
    y.shape = None if value.shape is None else value.shape.copy()
    for user, index in tuple(value.uses()):
        if user not in part.all_nodes:
            user.replace_input_with(index, y)
    if value.is_graph_output():
        host.outputs[:] = [y if output is value else output for output in host.outputs]
        value.name, y.name = f"{name}/x", value.name
