"""The head of a host: the linear way from the residual stream, through the last norm, to the logits of tokens.

    logits = norm(stream) * gain @ W_U          norm(x) = (x - mean(x)) / size(x), or x / size(x)

A norm is linear but for its size. What a feature adds to the stream, its row of W_dec, adds to the logits

    (W_dec[feature] - mean) * gain @ W_U        the mean only where the norm takes the mean away

for an activation of 1 where the norm divides by 1. Biases of the norm and of the head add the same to the logits of
every text, and are left out; a last tanh (softcapping) has slope 1 at 0. What later blocks make of the feature is left
out too. This is the logit lens (nostalgebraist, LessWrong 2020) of a direction of the dictionary, as the logit weights
of Bricken et al. (2023, Towards Monosemanticity) and of SAEDashboard, which folds the gain into W_U (Elhage et al.
2021, A Mathematical Framework for Transformer Circuits).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.exports.splice.fused_norm import taken_apart
from sae_runtime.exports.splice.stream import way_of

_LAST = -1
_SAME = ("Identity", "Cast", "Dropout")
_NORMS = {"LayerNormalization": True, "SimplifiedLayerNormalization": False, "RMSNormalization": False}  # centred?
_PLACES = ("Slice", "Gather", "GatherND", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose")
_QUANTISED = ("MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearMatMul")


class NoHead(ValueError):
    """A host does not tell what a feature adds to its logits; the message says why."""


@dataclass(frozen=True)
class Head:
    """The linear maps from the stream to the logits, in order.

    A map is None, which takes the mean away; a number or a vector, which multiplies; or a matrix. The last one is the
    unembedding [d, vocabulary], which may still lie in its file.
    """

    maps: tuple[Any, ...]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self.maps[-1].shape[1])

    def read(self, directions: NDArray[np.float32]) -> NDArray[np.float32]:
        """What directions of the stream [n, d] are where the unembedding reads them, [n, d']."""
        x = directions
        for one in self.maps[:-1]:
            if one is None:
                x = x - x.mean(axis=-1, keepdims=True)
            else:
                array = np.asarray(one, np.float32)
                x = x @ array if array.ndim == 2 else x * array
        return np.ascontiguousarray(x, np.float32)


def find_head(graph: ir.Graph, written: ir.Value) -> Head:
    """The head behind a value that is added to the residual stream, or is the stream.

    >>> graph = ir.load(host_path).graph
    >>> find_head(graph, graph.inputs[0])
    Traceback (most recent call last):
    sae_runtime.exports.splice.head.NoHead: the host has no head that gives logits of tokens

    Raises:
        NoHead: the host has no head, it is quantised, or the value does not come to it by sums alone.
    """
    whole = taken_apart(graph)
    values = {v.name: v for v in (*whole.inputs, *(output for node in whole for output in node.outputs))}
    place = values[written.name]
    outputs = sorted(whole.outputs, key=lambda output: output.name != "logits")
    for output in outputs:
        if _is_of_tokens(whole, output):
            return _Walk(whole, place).head(output)
    raise NoHead("the host has no head that gives logits of tokens")


def _is_of_tokens(graph: ir.Graph, output: ir.Value) -> bool:
    """Whether an output has a number for each token of the vocabulary, the rows of an embedding."""
    width = _width(output)
    if width is None or len(output.shape or ()) < 2 or width < 2:
        return False
    gathers = [node for node in graph if node.op_type in ("Gather", "GatherBlockQuantized")]
    return any(_reads_ids(node) and _rows(node.inputs[0]) == width for node in gathers)


def _reads_ids(node: ir.Node) -> bool:
    """Whether a Gather is told its rows by an input of the graph, other than positions and types of tokens."""
    index = node.inputs[1]
    while index is not None and (maker := index.producer()) is not None and maker.op_type in (*_SAME, *_PLACES):
        index = maker.inputs[0]
    name = "" if index is None else index.name or ""
    return index is not None and index.is_graph_input() and "position" not in name and "type" not in name


def _rows(table: ir.Value | None) -> int | None:
    """The rows of a table."""
    known = None if table is None else table.const_value if table.const_value is not None else table
    rows = None if known is None or known.shape is None or len(known.shape) != 2 else known.shape[0]
    return rows if isinstance(rows, int) else None


class _Walk:
    """The way back from the logits to the stream of a place."""

    def __init__(self, graph: ir.Graph, place: ir.Value) -> None:
        self._nodes, self._place = set(graph), place
        self._maps: list[Any] = []  # from the logits on

    def head(self, logits: ir.Value) -> Head:
        value = logits
        while way_of(self._place, value, self._nodes) is None:
            value = self._before(value)
        kept = self._maps[::-1]
        matrices = [i for i, one in enumerate(kept) if one is not None and one.ndim == 2]
        if not matrices:
            raise NoHead("the place is behind the head of the host")
        scales = kept[matrices[-1] + 1 :]  # numbers that multiply logits
        if any(one is None or one.size != 1 for one in scales):
            raise NoHead("the logits of the host are changed after its head")
        return Head((*scales, *kept[: matrices[-1] + 1]))

    def _before(self, value: ir.Value) -> ir.Value:
        """What the node that makes a value reads of the stream; its map is kept."""
        node = value.producer()
        if node is None or node not in self._nodes:
            raise NoHead("the place does not write to the stream that the head of the host reads")
        read = [one for one in node.inputs if one is not None]
        kind, first = node.op_type, read[0] if read else value
        fixed = [_constant(one) for one in read]
        if kind in _SAME or (kind == "Tanh" and not any(m is not None and m.ndim == 2 for m in self._maps)):
            return first
        if kind in _PLACES and _width(first) is not None and _width(first) == _width(value):
            return first
        if kind in _NORMS:
            self._maps.append(self._gain(fixed, node))
            self._maps += [None] if _NORMS[kind] else []
            return first
        if kind in ("MatMul", "Gemm", "FusedMatMul"):
            return self._product(node, first, fixed)
        if kind in _QUANTISED:
            raise NoHead(f"the head of the host is quantised ({kind})")
        if kind in ("Add", "Sub", "Mul", "Div"):
            return self._elementwise(node, read, fixed)
        raise NoHead(f"{kind} stands between the stream of the place and the head of the host")

    def _gain(self, fixed: list[Any], node: ir.Node) -> Any:
        gain = fixed[1] if len(fixed) > 1 else None
        if gain is None:
            raise NoHead(f"the gain of the norm {node.name} is no constant of the host")
        return gain.reshape(-1)

    def _product(self, node: ir.Node, first: ir.Value, fixed: list[Any]) -> ir.Value:
        weight, attributes = fixed[1], node.attributes
        if weight is None or weight.ndim != 2:
            maker = node.inputs[1].producer() if node.inputs[1] is not None else None
            if maker is not None and "Dequantize" in "".join(_makers(maker)):
                raise NoHead("the head of the host is quantised (DequantizeLinear)")
            raise NoHead(f"the weight of {node.name} is no constant of the host")
        if any(name in attributes and attributes[name].as_int() for name in ("transA", "transBatchA", "transBatchB")):
            raise NoHead(f"{node.name} reads the stream in another order")
        if "alpha" in attributes and (alpha := attributes["alpha"].as_float()) != 1:
            self._maps.append(np.float32(alpha))
        self._maps.append(weight.T if "transB" in attributes and attributes["transB"].as_int() else weight)
        return first

    def _elementwise(self, node: ir.Node, read: list[ir.Value], fixed: list[Any]) -> ir.Value:
        kind = node.op_type
        known = [i for i in range(2) if fixed[i] is not None]
        if len(known) == 1 and not (kind in ("Sub", "Div") and known == [0]):
            (i,) = known
            if kind in ("Mul", "Div"):
                array = np.asarray(fixed[i], np.float32).reshape(-1)
                self._maps.append(array if kind == "Mul" else 1 / array)
            return read[1 - i]
        if not known and kind in ("Mul", "Div"):  # a norm divides by the size of each token
            sizes = [i for i in range(2) if _width(read[i]) == 1]
            if len(sizes) == 1 and not (kind == "Div" and sizes == [0]):
                return read[1 - sizes[0]]
        if not known and kind == "Sub" and _is_mean_of(read[1], read[0]):
            self._maps.append(None)
            return read[0]
        raise NoHead("the place does not write to the stream that the head of the host reads")


def _is_mean_of(mean: ir.Value, value: ir.Value) -> bool:
    node = mean.producer()
    return node is not None and node.op_type == "ReduceMean" and node.inputs[0] is value and _width(mean) == 1


def _makers(node: ir.Node) -> Iterator[str]:
    """The operators that make a weight, back to its constants."""
    yield node.op_type
    for before in node.predecessors():
        yield from _makers(before)


def _constant(value: ir.Value) -> Any:
    """The array of a weight, as it lies in its file; None where it is no float constant of the graph."""
    if value.const_value is not None:
        return _floats(value.const_value)
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Constant":
        return _floats(ir.convenience.get_const_tensor(value))
    if node.op_type not in ("Identity", "Cast", "Transpose", "Add", "Mul"):
        return None
    read: list[Any] = []
    for one in node.inputs:
        if one is None or (array := _constant(one)) is None:
            return None
        read.append(array)
    if node.op_type == "Transpose":
        return np.transpose(read[0], node.attributes["perm"].as_ints() if "perm" in node.attributes else None)
    if node.op_type in ("Add", "Mul"):
        return (np.add if node.op_type == "Add" else np.multiply)(*(np.asarray(array, np.float32) for array in read))
    return read[0]


def _floats(tensor: Any) -> Any:
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    return tensor.numpy() if tensor is not None and tensor.dtype in floats else None


def _width(value: ir.Value) -> int | None:
    width = None if value.shape is None or not len(value.shape) else value.shape[_LAST]
    return width if isinstance(width, int) else None
