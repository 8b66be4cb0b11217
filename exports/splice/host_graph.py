"""Read the graph of a host model as people have it: of any opset, with or without shapes, with weights of any size.

Converter and shape inference work on a copy without the large weights, since protobuf holds no more than 2 GB, and
since onnx's converter drops weights that lie in other files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx import inliner

from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.folder import MANIFEST
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.hooks import Hook
from sae_runtime.bundle.siblings import repaired
from sae_runtime.bundle.splices import CUT_OF
from sae_runtime.exports.splice.conversion import OLDEST_IR, OLDEST_OPSET, converted
from sae_runtime.exports.splice.modules import modules_in, places_of
from sae_runtime.exports.splice.quantised import batch_warning, place_quantisers
from sae_runtime.exports.splice.shapes import infer_shapes, measure_shapes, unclear_values

_SMALL = 1024  # bytes of a weight that stays: shape inference reads the small ones


@dataclass(frozen=True, kw_only=True)
class HostGraph:
    """A host graph that a splice can go into.

    Attributes:
        model: the graph, of opset 18 or later, with shapes and without functions; external weights are not read.
        opset: the opset of the file.
        warnings: sentences about what it computes.
    """

    model: ir.Model
    opset: int
    warnings: tuple[str, ...]

    @property
    def is_converted(self) -> bool:
        """Whether the graph is of another opset than the file."""
        return self.opset < OLDEST_OPSET


def read_host(path: Path) -> HostGraph:
    """Read a host graph, bring it to opset 18, and infer the shapes that it lacks.

    >>> read_host(Path(host_path)).is_converted
    False

    Raises:
        FileNotFoundError: the host, or a file of its weights, is missing.
        ValueError: the path is a folder, the graph cannot be read or converted, it reads files outside of its folder,
            or it is a merged decoder or only a part of a spliced graph.
    """
    if path.is_dir():
        if (path / MANIFEST).is_file():
            raise ValueError(f"{path} is a bundle; name it by --sae, and as HOST the graph of a model")
        graphs = [*sorted(path.glob("*.onnx")), *sorted(path.glob("onnx/*.onnx"))]
        named = [str(graph) for graph in graphs if not graph.name.endswith("features.onnx")]
        raise ValueError(f"{path} is a folder; name the graph of a host, such as {(*named, 'model.onnx')[0]}")
    if not repaired(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; make a host graph: sae-runtime export-model")
    check_external(path)
    if CUT_OF in read_metadata(path):
        raise ValueError(f"{path} is the part of a graph that gives features; name the whole graph beside it")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx-ir raise whatever the bytes cause
        raise ValueError(f"{path} is not a readable ONNX graph ({error}); export it again") from error
    _refuse_merged(path, model)
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0))
    if opset < OLDEST_OPSET or model.functions or unclear_values(model.graph):
        try:
            model = _prepared(path, model, opset)
        except (ValueError, OSError):
            raise
        except Exception as error:  # what onnx and onnx-ir raise for an unsound graph has no class in common
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ValueError(f"{path} is not a sound ONNX graph ({reason}); export it again") from error
    model.ir_version = max(model.ir_version, OLDEST_IR)
    if unclear_values(model.graph):
        measure_shapes(model, path.parent)
    place_quantisers(model.graph)
    return HostGraph(model=model, opset=opset, warnings=tuple(batch_warning(model)))


def refuse_inside(host: Path, graph: ir.Graph, hook: Hook) -> None:
    """Refuse a hook at a tensor or a module that only the body of an If, Loop or Scan has.

    Raises:
        ValueError: the tensor is in such a body.
    """
    if _has(graph, hook):
        return
    for node, body in _bodies(graph):
        if _has(body, hook):
            raise ValueError(
                f"{hook} is inside the {node.op_type} node {node.name} of {host}, and a splice goes into the main "
                "graph alone; hook something before or after that node, or make a host: sae-runtime export-model"
            )


def _has(graph: ir.Graph, hook: Hook) -> bool:
    """Whether a graph itself, without the bodies in it, has the tensor or the module of a hook."""
    if hook.place == "tensor":
        values = (*graph.inputs, *(value for node in graph for value in node.outputs))
        return any(value.name == hook.name for value in values)
    modules = modules_in(places_of(graph))
    return any(module == hook.name or module.endswith(f".{hook.name}") for module in modules)


def _refuse_merged(path: Path, model: ir.Model) -> None:
    """Refuse a decoder that is two graphs in the branches of an If, as optimum merges them."""
    operators = {node.op_type for node in model.graph}
    if "If" not in operators or not operators <= {"If", "Identity", "Constant"}:
        return
    raise ValueError(
        f"{path} is a merged decoder: the model is inside an If node, and a splice goes into the main graph alone; "
        "splice decoder_with_past_model.onnx and decoder_model.onnx, which optimum-cli export onnx --no-post-process "
        "leaves beside it, or make a host: sae-runtime export-model"
    )


def _bodies(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Graph]]:
    """The graphs inside the nodes of a graph, at any depth, each with its node."""
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                yield node, body
                yield from _bodies(body)


def _prepared(path: Path, model: ir.Model, opset: int) -> ir.Model:
    """The model without functions, of opset 18 or later, with shapes."""
    weights = _take_weights(model.graph)
    given = {value.name for value in model.graph.inputs}
    model.graph.inputs.extend(value for name, value in weights.items() if name not in given)
    tensors = {name: value.const_value for name, value in weights.items()}
    for value in weights.values():
        value.const_value = None
    proto = ir.to_proto(model)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    if opset < OLDEST_OPSET:
        proto = converted(path, proto, opset)
    model = ir.from_proto(infer_shapes(proto))
    for value in list(model.graph.inputs):
        name = value.name or ""
        if name in tensors:
            value.const_value = tensors[name]
            model.graph.register_initializer(value)
            if name not in given:
                model.graph.inputs.remove(value)
    return model


def _take_weights(graph: ir.Graph) -> dict[str, ir.Value]:
    """Take the large weights out of a graph; the small ones are in memory afterwards."""
    taken = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes > _SMALL:
            value.type = value.type or ir.TensorType(tensor.dtype)
            value.shape = value.shape or ir.Shape(tensor.shape.numpy())
            taken[name] = graph.initializers.pop(name)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.tensor(tensor.numpy(), name=name)
    return taken
