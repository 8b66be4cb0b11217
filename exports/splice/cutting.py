"""The part of a spliced graph that gives features: everything up to the last hook that is read.

onnxruntime computes all of a graph, whichever outputs a caller asks for, so features alone need a graph of their own.
It has the same weights, and gives the same bits.
"""

import dataclasses

import onnx_ir as ir

from sae_runtime.bundle.splices import KEY, read_splices


def features_part(model: ir.Model) -> ir.Model:
    """The part of a spliced graph that gives the features of all its SAEs, of which it reads one at least.

    Inputs that the part does not need go, such as the past of later layers. Edits of an SAE stay where a later SAE
    reads what they change.

    Args:
        model: the whole graph; it stays as it is.
    """
    splices = read_splices(model.metadata_props)
    outputs = [name for spliced in splices.values() for name in spliced.outputs]
    graph = ir.convenience.extract(model.graph, list(model.graph.inputs), outputs)
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
            graph.initializers.pop(value.name or "", None)
    found = dict(graph.initializers)
    graph.initializers.clear()
    for name in model.graph.initializers:  # `extract` has them in another order each time
        if name in found:
            graph.initializers[name] = found[name]
    left = {value.name for value in graph.inputs}
    graph.metadata_props.clear()
    metadata = {key: text for key, text in model.metadata_props.items() if not key.startswith(KEY)}
    for spliced in splices.values():
        inputs = tuple(name for name in spliced.inputs if name in left)
        if inputs:
            metadata |= dataclasses.replace(spliced, inputs=inputs).to_metadata()
    return ir.Model(graph, ir_version=model.ir_version, metadata_props=metadata)
