"""The graph of a deployed model for a web page: every input has to be fed, and its weights lie in files beside it.

onnxruntime-web takes an input that has a default for a constant, and static hosts refuse large files.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from sae_runtime.bundle.external_data import check_external, located
from sae_runtime.bundle.splices import CUT_OF, KEY, read_splices
from sae_runtime.exports.int8_weights import quantise_weights

_LARGEST = 50_000_000  # bytes of a file of weights, unless one tensor is larger; some hosts refuse 100 MB
_SMALL = 1024  # bytes of a weight that stays in the graph
_ALIGNED = 64
_KINDS: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT4: "int4",
    onnx.TensorProto.UINT4: "int4",
}
_FLOAT32 = 1  # the accuracy level of MatMulNBits
_TYPES_OF_TEXT = ("type", "segment")  # in the name of an input that tells which of two texts a token is of


@dataclass(frozen=True)
class PageGraph:
    """A graph for a page.

    Attributes:
        graph: its file.
        external: the files of its weights, which lie beside it.
        weights: how most of the weights of its products are kept: float32, float16, int8, int4, ...
    """

    graph: Path
    external: tuple[Path, ...]
    weights: str


def write_page_graph(graph: Path, folder: Path, *, int8: bool = False) -> PageGraph:
    """Write the graph of a deployed model as onnxruntime-web runs it: `model.onnx` and the files of its weights.

    The inputs of SAEs lose their defaults, so a page feeds each of them in every run. Other inputs that have a default
    become constants, but token types, which the runtime feeds too. Equal weights are written once. Products with int4
    weights keep their activations in float32, as onnxruntime-web computes them whatever the graph says; elsewhere
    onnxruntime may round them to eight bits.

    Args:
        graph: of a deployed model; it and its files stay as they are.
        folder: where the new files go. It exists.
        int8: keep the host's weights as int8 numbers, with a scale for each column of a product and for each row of a
            table. The SAEs' weights stay as they are.

    Raises:
        FileNotFoundError: the graph, or a file that it reads, is missing.
        ValueError: the graph reads files outside of its folder, or `int8` is asked for and the host has no weights of
            float32 that can be kept so.

    >>> Path("page").mkdir()
    >>> made = write_page_graph(host_path, Path("page"))
    >>> made.graph.name, [file.name for file in made.external], made.weights
    ('model.onnx', ['weights.0.data'], 'float32')
    """
    graph = Path(graph)
    check_external(graph)
    model = onnx.load(graph, load_external_data=False)
    splices = read_splices({entry.key: entry.value for entry in model.metadata_props})
    _require_inputs(model.graph, {name for spliced in splices.values() for name in spliced.inputs})
    if int8:
        quantise_weights(model.graph, tuple(splices), lambda tensor: _bytes_of(graph, tensor))
    kept = [entry for entry in model.metadata_props if entry.key != CUT_OF and not entry.key.startswith(KEY)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for spliced in splices.values():  # its weights are in no file of their own any more
        for key, value in dataclasses.replace(spliced, file=None, bundle=None).to_metadata().items():
            model.metadata_props.add(key=key, value=value)
    _keep_activations(model.graph)
    weights = "int8" if int8 else _kind(model.graph)
    files = _write_weights(graph, model.graph, folder)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return PageGraph(path, tuple(files), weights)


def _require_inputs(graph: Any, own: set[str]) -> None:
    """Take the defaults of the inputs of SAEs and of token types away, and other inputs that have a default."""
    defaults = {tensor.name for tensor in graph.initializer}
    fed = [v for v in graph.input if v.name in own or v.name not in defaults or _is_of_types(v)]
    names = {value.name for value in fed}
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.input[:], graph.initializer[:]
    graph.input.extend(fed)
    graph.initializer.extend(kept)


def _is_of_types(value: Any) -> bool:
    """Whether an input tells which of two texts a token is of. Old graphs name their weights as inputs too."""
    is_named = any(word in value.name.lower() for word in _TYPES_OF_TEXT)
    return is_named and value.type.tensor_type.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


def _keep_activations(graph: Any) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = _FLOAT32


def _kind(graph: Any) -> str:
    """How most of a host's weights are kept, by the numbers of its initializers and the bits of its products."""
    bits = [a.i for node in graph.node if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "bits"]
    if bits:
        return f"int{max(set(bits), key=bits.count)}"
    sizes: dict[int, int] = {}
    for tensor in graph.initializer:
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + math.prod(tensor.dims)
    return _KINDS.get(max(sizes, key=sizes.__getitem__, default=onnx.TensorProto.FLOAT), "float32")


def _write_weights(graph: Path, root: Any, folder: Path) -> list[Path]:
    """Move the weights of a graph into files, `weights.0.data` and so on. Gives the files."""
    known: dict[tuple[str, int], tuple[str, int]] = {}  # file and offset by hash and size
    files: list[Path] = []
    offset = 0
    for tensor in _tensors(root):
        data = _bytes_of(graph, tensor)
        if len(data) <= _SMALL or tensor.data_type == onnx.TensorProto.STRING:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _set_raw(tensor, data)
            continue
        key = hashlib.sha256(data).hexdigest(), len(data)
        if key not in known:
            if not files or offset and offset + len(data) > _LARGEST:
                files.append(folder / f"weights.{len(files)}.data")
                files[-1].write_bytes(b"")
                offset = 0
            known[key] = files[-1].name, offset
            with files[-1].open("ab") as file:
                file.write(data)
                file.write(bytes(-len(data) % _ALIGNED))
            offset += len(data) + -len(data) % _ALIGNED
        name, begin = known[key]
        _set_raw(tensor, b"")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for entry, value in (("location", name), ("offset", str(begin)), ("length", str(len(data)))):
            tensor.external_data.add(key=entry, value=value)
    return files


def _set_raw(tensor: Any, data: bytes) -> None:
    """Let a tensor hold its numbers itself."""
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = data


def _tensors(graph: Any) -> Iterator[Any]:
    """The initializers of a graph and of the graphs in its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _bytes_of(graph: Path, tensor: Any) -> bytes:
    """The numbers of a tensor as ONNX writes them in files."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        if tensor.HasField("raw_data") or tensor.data_type == onnx.TensorProto.STRING:
            return bytes(tensor.raw_data)
        return numpy_helper.to_array(tensor).tobytes()
    place = {entry.key: entry.value for entry in tensor.external_data}
    with located(graph, place["location"]).open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        return file.read(int(place["length"])) if "length" in place else file.read()
