"""Tensors that stay in a file beside a graph; the graph refers to them by path and byte offset."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from sae_runtime.bundle.tensors import TensorSpec

_TYPES = {
    "F32": ir.DataType.FLOAT,
    "F64": ir.DataType.DOUBLE,
    "F16": ir.DataType.FLOAT16,
    "I8": ir.DataType.INT8,
    "I64": ir.DataType.INT64,
}


def external(name: str, file: str, spec: TensorSpec) -> ir.ExternalTensor:
    """A tensor of a safetensors file, for a graph to refer to.

    Args:
        name: of the tensor, in the graph.
        file: where the tensor is, a path from the graph's folder.
        spec: type, shape and offset of the tensor, as `read_header` gives them.

    Raises:
        KeyError: graphs hold no tensors of this type.

    >>> tensor = external("b_dec", "sae_weights.safetensors", TensorSpec("F32", (3,), offset=104, size=12))
    >>> tensor.shape, tensor.offset
    (Shape([3]), 104)
    """
    return ir.ExternalTensor(file, spec.offset, spec.size, _TYPES[spec.dtype], shape=ir.Shape(spec.shape), name=name)


def relocate(graph: Path, copy: Path, locations: Mapping[str, str]) -> None:
    """Write a copy of a graph that refers to files under new paths.

    Args:
        graph: the graph; its weights are not read.
        copy: where the copy goes; it may be the graph itself.
        locations: the new path of each file, by its old path; both start from the graph's folder.
    """
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = locations.get(entry.value, entry.value)
    onnx.save(model, copy)


def without_defaults(graph: Path, copy: Path) -> None:
    """Write a copy of a graph that wants all its inputs, for runtimes that feed no input that has a default.

    onnxruntime-web, onnxruntime-genai and OpenVINO take such an input for a constant.

    Args:
        graph: the graph; its weights are not read.
        copy: where the copy goes, in the folder of the graph's weights; it may be the graph itself.

    >>> folder = Path(bundle_path)
    >>> without_defaults(folder / "steer.onnx", folder / "steer_required.onnx")
    >>> [tensor.name for tensor in onnx.load(folder / "steer_required.onnx").graph.initializer if "/" in tensor.name]
    []
    """
    model = onnx.load(graph, load_external_data=False)
    inputs = {value.name for value in model.graph.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, copy)
