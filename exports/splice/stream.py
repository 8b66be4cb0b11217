"""The residual stream in a block: the sums that carry on what entered it."""

from collections.abc import Collection

import onnx_ir as ir

_SAME = ("Identity", "Cast", "Dropout")  # they give the numbers that they read


def way_of(stream: ir.Value, last: ir.Value, nodes: Collection[ir.Node]) -> list[ir.Value] | None:
    """The values through which a stream comes to `last`, in order; None where `last` does not carry it.

    A sum carries the stream if it adds something to it, or to a sum that carries it.

    stream --> Add --> Add --> last        None: stream --> Add --> Norm --> last
    """
    if last is stream:
        return [last]
    node = last.producer()
    if node is None or node not in nodes:
        return None
    for operand in _operands(node):
        before = way_of(stream, operand, nodes)
        if before is not None:
            return [*before, last]
    return None


def sums_on(way: Collection[ir.Value], nodes: Collection[ir.Node]) -> list[ir.Value]:
    """The sums among the values of a way that are made by these nodes."""
    return [v for v in way if (node := v.producer()) is not None and node in nodes and node.op_type == "Add"]


def _operands(node: ir.Node) -> list[ir.Value]:
    """What a node may carry on: the terms of a sum, the array that it scales by a number, or the array itself."""
    read = [value for value in node.inputs if value is not None]
    if node.op_type == "Add":
        return read
    if _passes_on(node):
        return read[:1]
    if node.op_type == "Mul":
        constants = [value for value in read if value.const_value is not None and value.const_value.size == 1]
        return [value for value in read if value not in constants] if len(constants) == 1 else []
    return []


def _passes_on(node: ir.Node) -> bool:
    """Whether a node gives the vectors that it reads, in their order, in another type or batch perhaps."""
    if node.op_type in _SAME:
        return True
    shapes = [value.shape for value in (node.inputs[0], node.outputs[0]) if value is not None]
    if node.op_type != "Reshape" or len(shapes) < 2 or not all(shapes):
        return False
    before, after = (shape[-1] for shape in shapes if shape is not None)
    return isinstance(before, int) and before == after


def is_read_beside(value: ir.Value, way: Collection[ir.Value], nodes: Collection[ir.Node]) -> bool:
    """Whether something reads the numbers of a value of a way and adds to the way later on."""
    seen: set[ir.Node] = set()
    todo = []
    for node in (use.node for use in value.uses()):
        if not set(way).intersection(node.outputs):
            todo.append(node)
        elif _passes_on(node) and is_read_beside(node.outputs[0], way, nodes):
            return True
    while todo:
        node = todo.pop()
        if set(way).intersection(node.outputs):
            return True
        if node in nodes and node not in seen:
            seen.add(node)
            todo.extend(use.node for output in node.outputs for use in output.uses())
    return False
