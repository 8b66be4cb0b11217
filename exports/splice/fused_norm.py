"""Norms in onnxruntime-genai's graphs that add to the residual stream before they norm it."""

import onnx_ir as ir

_UNFUSED = "sae_runtime.unfused"  # in the metadata of a sum that an earlier splice took out of its norm


def is_fused_norm(node: ir.Node) -> bool:
    """Whether a node adds its first two inputs and norms the sum, or did so before it was taken apart."""
    fused = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    return node.op_type in fused or _UNFUSED in node.metadata_props


def unfused(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Replace a fused norm by a sum and a norm, and give the sum. One that was taken apart stays as it is.

    x, skip --> SkipNorm --> y          x, skip --> Add --sum--> Norm --> y
    """
    if _UNFUSED in node.metadata_props:
        has_bias = node.metadata_props[_UNFUSED] == "bias"
        return next(iter(node.outputs[0].uses())).node.outputs[0] if has_bias else node.outputs[0]
    simple = node.op_type == "SkipSimplifiedLayerNormalization"
    x, skip, scale, *rest = [*node.inputs, None, None]
    shift, bias = (None, rest[0]) if simple else (rest[0], rest[1])
    total = node.outputs[3] if len(node.outputs) > 3 else None
    name = total.name if total is not None and total.name else f"{node.name}/sum"
    norm = node.outputs[0]
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    tape = ir.tape.Tape()
    result = tape.op("Add", [x, skip], output=ir.Value(name=name), name=f"{node.name}/Add")
    if bias is not None:
        result.name = f"{name}/before_bias"
        result = tape.op("Add", [result, bias], output=ir.Value(name=name), name=f"{node.name}/AddBias")
    for added in tape.nodes:
        added.outputs[0].type, added.outputs[0].shape = norm.type, norm.shape
    normed = tape.op(
        "SimplifiedLayerNormalization" if simple else "LayerNormalization",
        [result, scale] if simple else [result, scale, shift],
        {"axis": -1, "epsilon": epsilon},
        output=ir.Value(name=norm.name, type=norm.type, shape=norm.shape),
        name=f"{node.name}/Norm",
    )
    for new in tape.nodes:
        new.metadata_props.update(node.metadata_props)
    tape.nodes[0].metadata_props[_UNFUSED] = "" if bias is None else "bias"
    old, new_values = [norm], [normed]
    if total is not None:
        old, new_values = [norm, total], [normed, result]
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, old, new_values)
    return result
