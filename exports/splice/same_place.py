"""The place of a hook in a host that may have SAEs inside already.

Several SAEs at one place act one after the other: each reads what the one before it wrote.
"""

import onnx_ir as ir

from sae_runtime.bundle.hooks import Hook
from sae_runtime.bundle.splices import Spliced, read_splices
from sae_runtime.exports.splice.hook_tensor import find_hook
from sae_runtime.exports.splice.merge import Part, put_back


def find_place(model: ir.Model, hook: Hook, d_in: int) -> ir.Value:
    """The value that a hook names in the host, or what the last SAE that edits it there puts in its place.

    The hook is looked for in the host alone, so that SAEs inside it do not change what its modules read and give.

    Raises:
        ValueError: as `find_hook`, or the SAEs inside the host cannot be told from it.
    """
    graph = model.graph
    inputs, outputs = [*graph.inputs], [*graph.outputs]
    position = {node: number for number, node in enumerate(graph)}
    names = {value.name for value in graph.inputs} | {value.name for node in graph for value in node.outputs}
    inside = read_splices(model.metadata_props).values()
    for one in inside:
        if one.tensor not in names or not _nodes_of(graph, one.name):
            raise ValueError(f"a tool has renamed the nodes of the splice {one.name}; splice the host from before it")
    in_order = sorted(inside, key=lambda one: min(position[node] for node in _nodes_of(graph, one.name)))
    taken = [(one.name, *_taken_out(graph, one)) for one in reversed(in_order)]
    value = find_hook(graph, hook, d_in)
    for name, place, part in reversed(taken):
        put_back(graph, place, part, name)
        value = part.y if place is value and part.y is not None else value
    if taken:  # callers may know inputs and outputs by their order
        graph.inputs[:], graph.outputs[:] = inputs, outputs
    return value


def _taken_out(host: ir.Graph, spliced: Spliced) -> tuple[ir.Value, Part]:
    """Undo a merge: give the value of the host that the part reads, and the part, which `put_back` takes."""
    name, public = spliced.name, {*spliced.inputs, *spliced.outputs}
    nodes = _nodes_of(host, name)
    all_nodes = [*nodes]
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                all_nodes += ir.traversal.RecursiveGraphIterator(attribute.as_graph())
    inside = set(all_nodes)
    values = {value.name: value for value in host.inputs} | {v.name: v for node in host for v in node.outputs}
    value, x = values[spliced.tensor], ir.Value(name=f"{name}/x")
    made = [output for node in nodes for output in node.outputs if output.name not in public]
    y = next((v for v in made if v.is_graph_output() or any(use.node not in inside for use in v.uses())), None)
    part = Part(
        x=x,
        y=y,
        inputs=[value for value in host.inputs if value.name in public],
        outputs=[value for value in host.outputs if value.name in public],
        initializers=[v for key, v in host.initializers.items() if key in public or key.startswith(f"{name}/")],
        nodes=nodes,
        all_nodes=all_nodes,
    )
    for user, index in tuple(value.uses()):
        if user in inside:
            user.replace_input_with(index, x)
    if y is not None:
        for user, index in tuple(y.uses()):
            if user not in inside:
                user.replace_input_with(index, value)
        if y.is_graph_output():
            host.outputs[:] = [value if output is y else output for output in host.outputs]
            value.name, y.name = y.name, f"{name}/y"
    host.inputs[:] = [value for value in host.inputs if value.name not in public]
    host.outputs[:] = [value for value in host.outputs if value.name not in public]
    for initializer in part.initializers:
        del host.initializers[initializer.name or ""]
    host.remove(nodes)
    return value, part


def _nodes_of(host: ir.Graph, name: str) -> list[ir.Node]:
    """The nodes of the part whose names begin with `name`, without those in branches."""
    return [node for node in host if (node.name or "").startswith(f"{name}/")]
