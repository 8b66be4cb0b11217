"""Hook points of a host graph: which tensor is the activation that a hook names.

A hook is one of

- a module's name as torch has it (encoder.layer.3), for its output;
- a block's name and resid_pre, resid_mid or resid_post (transformer.h.6.resid_mid), for the residual stream before,
  inside and after it; TransformerLens names (blocks.6.hook_resid_mid) mean the same;
- tensor:NAME, for a tensor by its name in the graph.

torch's exporter leaves the names of the modules on every node. Other exporters name their nodes by path
(/model/layers.3/mlp/down_proj/MatMul), which says the same. The one of onnxruntime-genai adds a block's output to the
residual stream inside the next norm; such a norm is taken apart where the stream is wanted.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Sequence

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_FUSED = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_RESID = re.compile(r"(?P<block>.+)\.(?P<place>resid_(?:pre|mid|post))")
_TRANSFORMER_LENS = re.compile(r"blocks\.(?P<number>\d+)\.hook_(?P<place>resid_(?:pre|mid|post))")
_BLOCK = re.compile(r"(?:.*\.)?(?:blocks?|h|layers?)\.(?P<number>\d+)")
_LISTED = 12  # candidates that a message names at most

Scopes = Sequence[str]  # the modules that a node lies in, the outermost first


def find_hook(graph: ir.Graph, hook: str, width: int) -> ir.Value:
    """The tensor [b, t, width] that a hook names; a fused norm may be taken apart for it.

    Raises:
        ValueError: there is none, there are several, or it has another width; the message lists candidates.
    """
    if hook.startswith("tensor:"):
        return _tensor(graph, hook.removeprefix("tensor:"), width)
    scopes = _scopes(graph)
    if not scopes:
        raise ValueError(
            "the graph names no modules: it was optimised, or exported in another way; splice before optimising, or "
            f"hook tensor:NAME, such as {_listed(_wide(graph, width))}"
        )
    modules = sorted({scope for names in scopes.values() for scope in names})
    if lens := _TRANSFORMER_LENS.fullmatch(hook):
        block = _numbered(modules, int(lens["number"]), hook)
        return _residual(graph, scopes, block, lens["place"], width)
    if resid := _RESID.fullmatch(hook):
        return _residual(graph, scopes, _module(modules, resid["block"]), resid["place"], width)
    return _output(graph, scopes, _module(modules, hook), width)


def _scopes(graph: ir.Graph) -> dict[ir.Node, Scopes]:
    """The modules of every node that says where it lies."""
    found: dict[ir.Node, Scopes] = {}
    for node in graph:
        written = node.metadata_props.get(_SCOPES)
        if written is not None:
            names = ast.literal_eval(written)[:-1]  # the last is the operation itself
            found[node] = [name for name in names if name]
        elif node.name and node.name.startswith("/"):
            parts = node.name.strip("/").split("/")[:-1]
            found[node] = [".".join(parts[: i + 1]) for i in range(len(parts))]
    if found:
        for node in graph:
            if node not in found:  # one that the exporter's optimiser made: it lies where all around it lies
                around = [found[near] for near in (*node.predecessors(), *node.successors()) if near in found]
                found[node] = _common(around)
    return {node: names for node, names in found.items() if names}


def _common(around: Sequence[Scopes]) -> Scopes:
    return [names[0] for names in zip(*around, strict=False) if len(set(names)) == 1]


def _module(modules: Sequence[str], name: str) -> str:
    """The one module of this name; what wraps the model may stand before it, and its first part may be missing."""
    base = name.partition(".")[2]  # a checkpoint with a head names its modules from the head
    for wanted in (name, base) if "." in base else (name,):
        found = [module for module in modules if module == wanted] or [
            module for module in modules if module.endswith(f".{wanted}")
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{name} is the name of several modules, {_listed(found)}; give more of it")
    close = difflib.get_close_matches(name, modules, n=5, cutoff=0)
    raise ValueError(f"the graph has no module {name!r}; close names are {_listed(close)}")


def _numbered(modules: Iterable[str], number: int, hook: str) -> str:
    """The block of a number."""
    blocks = [match for match in map(_BLOCK.fullmatch, modules) if match]
    found = [match[0] for match in blocks if int(match["number"]) == number]
    found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(found) != 1:
        names = _listed(found or [match[0] for match in blocks])
        raise ValueError(f"{hook} names no block of this graph for certain; name the module, one of {names or 'none'}")
    return found[0]


def _output(graph: ir.Graph, scopes: dict[ir.Node, Scopes], module: str, width: int) -> ir.Value:
    """What leaves a module. Of a block whose sum is fused into the next norm, that sum."""
    inside = _inside(scopes, module)
    leaving = [
        value
        for node in graph
        if node in inside
        for value in node.outputs
        if _is_activation(value) and _used_outside(value, inside)
    ]
    fused = {use.node for value in leaving for use in value.uses() if use.node not in inside and _is_fused(use.node)}
    if _BLOCK.fullmatch(module) and len(fused) == 1:
        return _checked(unfused(graph, fused.pop()), width, module)
    return _only(leaving, width, f"what {module} gives")


def _residual(graph: ir.Graph, scopes: dict[ir.Node, Scopes], block: str, place: str, width: int) -> ir.Value:
    inside = _inside(scopes, block)
    adds = [
        node.outputs[0]
        for node in graph
        if node in inside and scopes[node][-1] == block and node.op_type == "Add" and _is_activation(node.outputs[0])
    ]
    fused = [node for node in graph if node in inside and _is_fused(node)]
    entering = {
        value
        for node in inside
        for value in node.inputs
        if value is not None and value.producer() not in inside and not value.is_initializer() and _is_activation(value)
    }
    # A norm that both sides of a sum come into from without makes the stream that the block starts from.
    first = [node for node in fused if {node.inputs[0], node.inputs[1]} <= entering]
    if place == "resid_pre":
        if len(first) == 1:
            return _checked(unfused(graph, first[0]), width, block)
        return _only(sorted(entering, key=lambda value: value.name or ""), width, f"what enters {block}")
    if place == "resid_mid" and fused:
        middle = [node for node in fused if node not in first]
        if len(middle) == 1:
            return _checked(unfused(graph, middle[0]), width, block)
    output = _output(graph, scopes, block, width)
    if place == "resid_post" and (fused or output in adds):
        return output
    if place == "resid_mid" and output in adds:
        return _only([value for value in adds if value is not output], width, f"the sums in {block} before its last")
    last = output.producer()
    raise ValueError(
        f"{block} does not end in a sum of the residual stream but in {last.op_type if last else 'an input'}, so it "
        f"has no {place}; hook a module, such as {block} for its output"
    )


def unfused(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """The sum inside a Skip(Simplified)LayerNormalization, which becomes nodes of its own, sum and norm."""
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
    ir.convenience.replace_nodes_and_values(
        graph,
        node,
        [node],
        tape.nodes,
        [norm, *([total] if total is not None else [])],
        [normed, *([result] if total is not None else [])],
    )
    return result


def _inside(scopes: dict[ir.Node, Scopes], module: str) -> set[ir.Node]:
    return {node for node, names in scopes.items() if module in names}


def _used_outside(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in inside for use in value.uses())


def _is_fused(node: ir.Node) -> bool:
    return node.op_type in _FUSED


def _is_activation(value: ir.Value) -> bool:
    """Whether a value may be [b, t, width]: three dimensions of float numbers, the last one known."""
    return (
        value.dtype in _FLOATS and value.shape is not None and len(value.shape) == 3 and isinstance(value.shape[2], int)
    )


def _width(value: ir.Value) -> int:
    assert value.shape is not None and isinstance(value.shape[2], int)
    return value.shape[2]


def _only(values: Sequence[ir.Value], width: int, what: str) -> ir.Value:
    """The one value of this width."""
    found = [value for value in values if _width(value) == width]
    if len(found) == 1:
        return found[0]
    if not found:
        has = f"{_listed(_described(values))}" if values else "no activations [b, t, d]"
        raise ValueError(f"{what} is {has}, this SAE expects width {width}; hook the module that it was fitted on")
    raise ValueError(f"{what} is not one tensor but {_listed(_described(found))}; hook tensor:NAME")


def _checked(value: ir.Value, width: int, what: str) -> ir.Value:
    return _only([value], width, what)


def _tensor(graph: ir.Graph, name: str, width: int) -> ir.Value:
    values = {value.name: value for node in graph for value in node.outputs}
    values |= {value.name: value for value in graph.inputs}
    if name not in values:
        close = difflib.get_close_matches(name, [key for key in values if key], n=5, cutoff=0)
        raise ValueError(f"the graph has no tensor {name!r}; close names are {_listed(close)}")
    if not _is_activation(values[name]):
        value = values[name]
        raise ValueError(f"{name} is {value.dtype} {value.shape}, expected float [b, t, {width}]; name another tensor")
    return _checked(values[name], width, name)


def _wide(graph: ir.Graph, width: int) -> list[str]:
    found = [value for node in graph for value in node.outputs if _is_activation(value) and _width(value) == width]
    return [str(value.name) for value in found]


def _described(values: Sequence[ir.Value]) -> list[str]:
    return [f"{value.name} of width {_width(value)}" for value in values]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none") + more
