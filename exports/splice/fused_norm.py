"""Norms that add to the residual stream before they norm it, in graphs of onnxruntime-genai and of optimisers.

    x, skip --> SkipNorm --> y          x --[+ bias]--> Add --sum--> Norm --> y
                                        skip -----------^

A hook may name what is inside: the sum, or x with its bias. Then the node is taken apart.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

import onnx_ir as ir

_ROLE = "sae_runtime.unfused"  # in the metadata of the parts of a norm that was taken apart


@dataclass(frozen=True)
class Role:
    """What a node does that was a part of a fused norm.

    Attributes:
        part: which part it is.
        of: the output of the fused norm, which names it.
        node: the name of the fused norm.
        names_itself: whether this is a path to a norm, as the builder of onnxruntime-genai writes it.
        bias_owner: the module of the bias, if the norm has one.
    """

    part: Literal["bias", "sum", "norm"]
    of: str
    node: str
    names_itself: bool
    bias_owner: str | None


def is_fused_norm(node: ir.Node) -> bool:
    """Whether a node adds its first two inputs and norms the sum."""
    return node.op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def role_of(node: ir.Node) -> Role | None:
    """What a node of `taken_apart` does in the norm that it was a part of; None for any other node."""
    written = node.metadata_props.get(_ROLE)
    return None if written is None else Role(**json.loads(written))


def taken_apart(graph: ir.Graph) -> ir.Graph:
    """The graph, or a copy of it without fused norms if it has some; its nodes know their `role_of`."""
    if not any(map(is_fused_norm, graph)):
        return graph
    copy = graph.clone()
    for node in [node for node in copy if is_fused_norm(node)]:
        unfused(copy, node)
    return copy


def in_original(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The value of a graph that a value of its `taken_apart` copy stands for; its fused norm is taken apart for it."""
    producer = value.producer()
    if value.graph is graph or (producer is not None and producer.graph is graph):
        return value
    role = None if producer is None else role_of(producer)
    if role is not None and role.part != "norm":
        for node in [node for node in graph if is_fused_norm(node) and node.outputs[0].name == role.of]:
            unfused(graph, node)
    inside = (output for node in graph for output in node.outputs)
    return next(found for found in (*graph.inputs, *inside) if found.name == value.name)


def unfused(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a fused norm by a sum, or two, and a norm."""
    simple = node.op_type == "SkipSimplifiedLayerNormalization"
    x, skip, scale, *rest = [*node.inputs, None, None]
    shift, bias = (None, rest[0]) if simple else (rest[0], rest[1])
    norm, total = node.outputs[0], node.outputs[3] if len(node.outputs) > 3 else None
    own = node.name or norm.name or ""
    name = total.name if total is not None and total.name else f"{own}/sum"
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    tape = ir.tape.Tape()

    def like_norm(name: str) -> ir.Value:
        return ir.Value(name=name, type=norm.type, shape=norm.shape)

    itself = (node.name or "").startswith("/") and (node.name or "").endswith("/SkipLayerNorm")
    parts: list[Literal["bias", "sum", "norm"]] = ["sum", "norm"]
    if bias is not None and not itself:  # an optimiser took the bias from the module that gives x
        x = tape.op("Add", [x, bias], output=like_norm(f"{own}/biased"), name=f"{own}/AddBias")
        parts = ["bias", "sum", "norm"]
    sum_name = f"{own}/before_bias" if bias is not None and itself else name
    result = tape.op("Add", [x, skip], output=like_norm(sum_name), name=f"{own}/Add")
    if bias is not None and itself:
        result = tape.op("Add", [result, bias], output=like_norm(name), name=f"{own}/AddBias")
        parts = ["sum", "bias", "norm"]
    normed = tape.op(
        "SimplifiedLayerNormalization" if simple else "LayerNormalization",
        [result, scale] if simple else [result, scale, shift],
        {"axis": -1, "epsilon": epsilon},
        output=like_norm(norm.name or ""),
        name=f"{own}/Norm",
    )
    owner = None if bias is None or bias.name is None else bias.name.rpartition(".")[0]
    for new, part in zip(tape.nodes, parts, strict=True):
        new.metadata_props.update(node.metadata_props)
        role = Role(part, norm.name or "", node.name or "", itself, owner)
        new.metadata_props[_ROLE] = json.dumps(asdict(role))  # a later splice in the graph that is saved reads it
    old, new_values = [norm], [normed]
    if total is not None:
        old, new_values = [norm, total], [normed, result]
    ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, old, new_values)
