"""Tell the modules of the nodes that a quantiser made: it names them after what they quantise, or not at all."""

import onnx_ir as ir

from sae_runtime.exports.splice.modules import SCOPES, places_of

_QUANTISING = ("QuantizeLinear", "DynamicQuantizeLinear")
_BATCH_RANGES = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


def place_quantisers(graph: ir.Graph) -> None:
    """Write into the metadata of a quantiser's nodes that they are where their numbers are read.

    A quantised and dequantised value stays where it is made: its readers see it so, and an edit of it is not cut to the
    range of the integers.
    """
    if not any(node.op_type in _QUANTISING for node in graph):
        return
    before = {node: list(where.sure) for node, where in places_of(graph).items()}
    told = {node for node in graph if SCOPES in node.metadata_props or str(node.name).startswith("/")}
    scopes = {node: names for node, names in before.items() if node in told}
    for node in reversed(graph):
        readers = [scopes[reader] for reader in node.successors() if reader in scopes]
        if readers and (node.op_type in _QUANTISING or node not in told):
            scopes[node] = [names[0] for names in zip(*readers, strict=False) if len(set(names)) == 1]
    for node in graph:
        makers, readers_of_it = node.predecessors(), node.successors()
        pair = node.op_type == "QuantizeLinear" and all(one.op_type == "DequantizeLinear" for one in readers_of_it)
        if pair and makers and makers[0] in scopes:
            scopes.update(dict.fromkeys((node, *readers_of_it), scopes[makers[0]]))
    for node, names in scopes.items():
        if names != before.get(node) or node not in told:
            node.metadata_props[SCOPES] = str([*names, node.name])


def batch_warning(model: ir.Model) -> list[str]:
    """A sentence on a graph whose requests affect each other, because it quantises by the range of the whole batch."""
    operators = {node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    found = sorted(operators.intersection(_BATCH_RANGES))
    text = (
        f"the host quantises activations by their range over the whole batch ({', '.join(found)}), so requests that "
        "are run together change each other's features and outputs, by 1 % or more"
    )
    return [text] if found else []
