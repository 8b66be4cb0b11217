"""Write the number of a module's call into a graph that torch exports.

torch.export knows the calls of a module apart, as `layer`, `layer@1`, `layer@2`, but torch's exporter of graphs drops
these numbers from the names of modules that it writes on the nodes.
"""

import ast
from typing import Any

from sae_runtime.exports.splice.modules import SCOPES


def number_calls(program: Any) -> None:
    """Write `module@1` for the second call of a module, and so on, into the metadata of a program's graph.

    Args:
        program: what `torch.onnx.export(dynamo=True)` gives.
    """
    numbers = {node.name: _numbers(node) for node in program.exported_program.graph.nodes}
    for node in program.model.graph:
        written = node.metadata_props.get(SCOPES)
        if written is None:
            continue
        *modules, operation = ast.literal_eval(written)
        of_node = numbers.get(operation, {})
        named = [f"{module}@{of_node[module]}" if module in of_node else module for module in modules]
        node.metadata_props[SCOPES] = repr([*named, operation])


def _numbers(node: Any) -> dict[str, str]:
    """By module around a node of torch's graph, the number of its call, for all but first calls."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack", {})
    calls = [(module, key.rpartition("@")[2]) for key, (module, _) in stack.items() if "@" in key]
    return {module: number for module, number in calls if number.isdigit()}
