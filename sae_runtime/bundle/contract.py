"""A bundle's graph is held to the contract before it runs: it is one that our exporter writes for this SAE.

A bundle may come from a stranger, and then its hashes prove nothing. A list of allowed operators would not be enough:
twenty concatenations of a tensor with itself make a million of it, and each is an operator that our graphs use. So the
runtime compares the whole graph with what our exporter writes, without the exporter and without onnx.

The *form* of a graph is its nodes, their attributes and their wiring, its inputs and outputs, and the type of every
initializer, with neither names nor numbers. `graph_forms.txt` lists the hash of each form that an exporter of ours has
written, with the numbers that belong into it, one constant after the other. A number that depends on the SAE is named
there: d_sae, k, groups. A form is hashed with the fields of the manifest that decide it, so a graph of another
architecture is refused too. Each weight must refer to the bytes of the tensor of its name.

So a graph that passes computes the SAE of the bundle's weights. What a stranger can still choose is the content of
`derived.safetensors`, as far as `derived_weights.py` lets it pass. `load(rebuild=True)` does not read it, and
`inspect --check` compares with numpy what comes of it.

`sae_runtime.exports.forms` writes the list. A test fails where the exporter writes a form that the list lacks.
"""

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.graph_reader import Graph, Model, Node, Tensor, Value, read_model
from sae_runtime.bundle.graphs import DECODE, EXACT, GRAPHS, GROUP, JOINT
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.tensors import TensorSpec

LARGEST = 1 << 23  # bytes of a graph; ours have at most 20 KB, and a few bytes more for each group of groupmax
FORMS = "graph_forms.txt"
_MOST_PASSED = 1024
_passed: set[bytes] = set()  # graphs of this process with all that decides of them; a program loads a bundle repeatedly
_ROW_BYTES = 3 << 20  # of the rows of W_enc that encode_exact.onnx copies together
_FORMATS = {1: "f", 7: "q", 9: "?", 10: "e", 11: "d"}  # of ONNX's types: how the bytes of a number are read
_TYPES = {"F32": 1, "I8": 3, "I64": 7, "F16": 10, "F64": 11}  # of safetensors: their number in ONNX

Files = Mapping[str, Mapping[str, TensorSpec]]
"""The specs of the tensors of each file that a graph may read, by the name of the file."""


class Form:
    """What identifies a graph among those that our exporter writes.

    Attributes:
        digest: of the form.
        numbers: of the constants, in the order in which the graph uses them; the numbers of one are joined by commas.
        weights: the initializers in other files.
    """

    def __init__(self, model: Model, decided_by: object) -> None:
        self.numbers: list[str] = []
        self.weights: list[Tensor] = []
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializers}
        self._inputs = {value.name for value in model.graph.inputs}
        self._made: dict[str, str] = {}
        self._used: set[str] = set()
        self._texts: dict[str, str] = {}
        lines = [f"{decided_by} {model.ir_version} {model.opsets}", *self._lines(model.graph, "<")]
        _check_types(model.graph)
        if unused := self._tensors.keys() - self._used:
            raise ValueError(f"it holds {len(unused)} initializers that it does not use")
        self.digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    def _lines(self, graph: Graph, prefix: str) -> Iterator[str]:
        top = prefix == "<"
        for number, value in enumerate(graph.inputs):
            yield f"{prefix}{value.name if top else number} {self._typed(value)}"
            if top and value.name in self._tensors:
                yield self._constant(value.name)
            self._make(value.name, f"{prefix}{value.name if top else number}")
        if not top and (graph.initializers or graph.types):
            raise ValueError("a graph in a node has its own initializers")
        for node in graph.nodes:
            yield from self._node(node)
        for value in graph.outputs:
            yield f"> {value.name if top else ''} {self._typed(value) if top else ''} {self._operand(value.name)}"

    def _node(self, node: Node) -> Iterator[str]:
        operands = [(operand, len(list(same))) for operand, same in groupby(map(self._operand, node.inputs))]
        if node.kind == "Concat":  # encode_gpu.onnx repeats a part as often as its product has channels to fill
            self.numbers += [str(count) for _, count in operands]
            operands = [(operand, 0) for operand, _ in operands]
        yield f"{node.domain} {node.kind} {operands}"
        for name in sorted(node.attributes):
            kind, content = node.attributes[name]
            yield f". {name} {kind} {'' if isinstance(content, Graph) else content!r}"
            if isinstance(content, Graph):
                yield from self._lines(content, f"{len(self._made)}<")
        yield f"= {len(node.outputs)}"
        for name in node.outputs:
            self._make(name, str(len(self._made)))

    def _make(self, name: str, token: str) -> None:
        if not name or name in self._made or (name in self._tensors and name not in self._inputs):
            raise ValueError("two values have one name, or a value has none")
        self._made[name] = token

    def _operand(self, name: str) -> str:
        if not name:
            return "-"
        if name in self._made:
            return self._made[name]
        if name not in self._tensors:
            raise ValueError("a node reads a value that no node before it makes")
        return self._constant(name)

    def _constant(self, name: str) -> str:
        tensor = self._tensors[name]
        self._used.add(name)
        kind = f"{tensor.dtype}:{len(tensor.dims)}"
        if tensor.external:
            self.weights.append(tensor)
            self.numbers.append(",".join(map(str, tensor.dims)))
            return f"{tensor.name}@{tensor.external.get('location')}:{kind}"
        if len(tensor.dims) > 1:
            self.numbers.append(",".join(map(str, tensor.dims)))
        if name not in self._texts:  # a stranger may use a large one in each of many nodes
            self._texts[name] = _numbers(tensor)
        self.numbers.append(self._texts[name])
        return f"constant:{kind}"

    def _typed(self, value: Value) -> str:
        dims = value.dims if value.dims is not None else ("?",)
        self.numbers += [str(dim) for dim in dims if isinstance(dim, int)]
        return f"{value.dtype} {[dim if isinstance(dim, str) else 0 for dim in dims]}"


def check_graph(graph: bytes, name: str, manifest: Manifest, files: Files) -> None:
    """Raise ValueError unless a graph is one that our exporter writes for this SAE.

    Args:
        graph: the bytes of the graph.
        name: its file name.
        manifest: of the bundle.
        files: where the weights of the bundle are.

    >>> from sae_runtime.bundle.folder import read
    >>> bundle = read(bundle_path)
    >>> files = {"sae_weights.safetensors": bundle.specs}
    >>> check_graph((bundle.path / "encode.onnx").read_bytes(), "encode.onnx", bundle.manifest, files)
    >>> check_graph((bundle.path / "decode.onnx").read_bytes(), "encode.onnx", bundle.manifest, files)
    Traceback (most recent call last):
    ValueError: encode.onnx is not a graph that sae-runtime writes for this SAE (its nodes, inputs or outputs are ...
    """
    decides = (name, hashlib.sha256(graph).digest(), manifest.architecture, manifest.allocation, manifest.slots, files)
    key = hashlib.sha256(repr(decides).encode()).digest()
    if key in _passed:
        return
    try:
        if name not in {known.file for known in GRAPHS}:
            raise ValueError("no graph has this name")
        if len(graph) > LARGEST:
            raise ValueError(f"it has {len(graph):,} bytes, expected at most {LARGEST:,}")
        form = form_of(graph, name, manifest)
        expected = _listed(name, form.digest)
        if not expected:
            raise ValueError("its nodes, inputs or outputs are others")
        known = named_numbers(manifest)
        if not any(_spelled(numbers, known) == form.numbers for numbers in expected):
            raise ValueError("its sizes or constants are others")
        for tensor in form.weights:
            _check_weight(tensor, files)
    except ValueError as error:
        raise ValueError(
            f"{name} is not a graph that sae-runtime writes for this SAE ({error}); load with rebuild=True"
        ) from error
    if len(_passed) >= _MOST_PASSED:
        _passed.clear()
    _passed.add(key)


def check_order(order: NDArray[np.int64], d_sae: int) -> None:
    """Raise ValueError unless int8_order has every feature once: encode_exact.onnx takes its features from there.

    >>> check_order(np.array([2, 0, 0]), 3)
    Traceback (most recent call last):
    ValueError: int8_order does not list each of the 3 features once; load with rebuild=True
    """
    listed = np.zeros(d_sae, bool)
    listed[order[(order >= 0) & (order < d_sae)]] = True
    if len(order) != d_sae or not listed.all():
        raise ValueError(f"int8_order does not list each of the {d_sae:,} features once; load with rebuild=True")


def form_of(graph: bytes, name: str, manifest: Manifest) -> Form:
    """The form of a graph; raises ValueError if the bytes are none, or hold what our exporter never writes.

    >>> from sae_runtime.bundle.folder import read
    >>> bundle = read(bundle_path)
    >>> form = form_of((bundle.path / "encode.onnx").read_bytes(), "encode.onnx", bundle.manifest)
    >>> [weight.name for weight in form.weights]
    ['threshold', 'b_dec', 'W_enc', 'b_enc']
    """
    architecture, allocation = manifest.architecture, manifest.allocation
    decided_by: list[object] = [name, architecture.norm]
    decided_by += [architecture.skip] if name == DECODE.file else [architecture.selection, architecture.pre_bias]
    if name in (EXACT.file, JOINT.file):
        decided_by.append(allocation is not None and allocation.kind == "mutual")
    return Form(read_model(graph), decided_by)


def named_numbers(manifest: Manifest) -> dict[str, str]:
    """The numbers of graphs that depend on the SAE, by the names that the list of forms has for them.

    >>> named_numbers(sae.manifest)["d_sae"]
    '150'
    """
    architecture, slots = manifest.architecture, manifest.slots
    d_in, d_sae, k = architecture.d_in, architecture.d_sae, architecture.k or 1
    candidates = min(slots + max(slots // 4, 16), d_sae)  # of encode_gpu.onnx
    channels = -(-(d_in + 3) // 8) * 8
    whole = {
        "d_in": d_in,
        "d_sae": d_sae,
        "d_out": architecture.d_x_hat,
        "k": k,
        "slots": slots,
        "groups": d_sae // GROUP,
        "run": d_sae // k,
        "last_feature": d_sae - 1,
        "last_slot": slots - 1,
        "candidates": candidates,
        "last_candidate": candidates - 1,
        "rows": max(_ROW_BYTES // (4 * d_in), 1),
        "int8_channels": d_in + -d_in % 4,
        "half_channels": channels,
        "fill": channels - d_in - 2,  # and one for the rest
    }
    real = {
        "1/d_in": 1 / d_in,
        "d_in^-0.5": d_in**-0.5,
        "(d_in-1)^-0.5": max(d_in - 1, 1) ** -0.5,
    }
    names = {name: str(number) for name, number in whole.items()} | {name: _float32(n) for name, n in real.items()}
    names["runs"] = ",".join(str(run * (d_sae // k)) for run in range(k))
    if manifest.allocation is not None:
        names["matches"] = repr(float(manifest.allocation.k))
    return names


def _spelled(numbers: list[str], known: Mapping[str, str]) -> list[str]:
    """The numbers of a listed form for one SAE."""
    return [",".join(known.get(part, part) for part in number.split(",")) for number in numbers]


def _listed(name: str, digest: str) -> list[list[str]]:
    """The numbers that belong into a form; exporters have written some forms with other numbers too."""
    from importlib import resources  # only here, so that a deployed model loads faster

    listed = resources.files("sae_runtime.bundle").joinpath(FORMS).read_text()
    key = f"{name}|{digest}|"
    return [part.partition("\n")[0].split("|") for part in listed.split(key)[1:]]


def _check_types(graph: Graph) -> None:
    """Raise ValueError if a graph says another type of an initializer than the initializer has."""
    tensors = {tensor.name: tensor for tensor in graph.initializers}
    if len(tensors) != len(graph.initializers):
        raise ValueError("two initializers have one name")
    for value in graph.types:
        tensor = tensors.get(value.name)
        if tensor is None or (value.dtype, value.dims) != (tensor.dtype, tensor.dims):
            raise ValueError("it gives a type to a value that has another, or to none of its initializers")


def _check_weight(tensor: Tensor, files: Files) -> None:
    file = tensor.external.get("location", "")
    spec = files.get(file, {}).get(tensor.name)
    if spec is None:
        raise ValueError(f"it reads a tensor that {file} does not have")
    place = {"location": file, "offset": str(spec.offset), "length": str(spec.size)}
    if (tensor.dtype, tensor.dims) != (_TYPES.get(spec.dtype), spec.shape) or dict(tensor.external) != place:
        raise ValueError(f"{tensor.name} is not the tensor of this name in {file}")


def _numbers(tensor: Tensor) -> str:
    """The numbers of a constant, joined by commas."""
    kind, count = _FORMATS.get(tensor.dtype), math.prod(tensor.dims)
    if kind is None or count < 0 or len(tensor.raw) != count * struct.calcsize(f"<{kind}"):
        raise ValueError("a constant does not fill its shape, or has a type that no constant has")
    return ",".join(map(repr, struct.unpack(f"<{count}{kind}", tensor.raw)))


def _float32(number: float) -> str:
    return repr(struct.unpack("<f", struct.pack("<f", number))[0])
