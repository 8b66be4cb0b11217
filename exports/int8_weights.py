"""The weights of a host as int8 numbers, one scale for each column of a product and for each row of a table.

In numpy, for a weight w [k, n] of the product x @ w:

    scale = abs(w).max(axis=0) / 127
    kept = round(w / scale)
    w' = kept * scale

A DequantizeLinear makes w' of what is kept. onnxruntime does so once, when it opens the graph, with the session option
`session.disable_quant_qdq`. Activations stay as they are: rounding them by the range of a batch changes features.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_LEAST = 4096  # numbers of a weight that is worth it


def quantise_weights(graph: Any, saes: Sequence[str], bytes_of: Callable[[Any], bytes]) -> int:
    """Keep the float32 weights of a host as int8 numbers; gives how many weights these are.

    Args:
        graph: a GraphProto, which changes.
        saes: names of the SAEs in it, whose weights stay.
        bytes_of: gives the numbers of an initializer, which may be in another file.

    Raises:
        ValueError: there is no such weight.
    """
    axes = _axes(graph)
    nodes, kept = [], []
    for tensor in graph.initializer:
        axis = axes.get(tensor.name)
        is_sae = tensor.name.startswith(tuple(f"{name}{mark}" for name in saes for mark in "/_"))
        if axis is None or is_sae or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2:
            kept.append(tensor)
            continue
        if np.prod(tensor.dims) < _LEAST:
            kept.append(tensor)
            continue
        w = np.frombuffer(bytes_of(tensor), np.float32).reshape(tuple(tensor.dims))
        numbers, scale = quantised(w, axis)
        names = f"{tensor.name}_int8", f"{tensor.name}_scale"
        kept += [numpy_helper.from_array(numbers, names[0]), numpy_helper.from_array(scale, names[1])]
        nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], f"{tensor.name}/int8", axis=axis))
    if not nodes:
        raise ValueError(
            "the host has no float32 weights of products or tables that can be kept as int8 numbers; leave --int8 out"
        )
    others = list(graph.node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*nodes, *others])
    graph.initializer.extend(kept)
    return len(nodes)


def quantised(w: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight [m, n] as int8 numbers, and their scale along an axis.

    >>> numbers, scale = quantised(np.array([[1.0, -4.0], [0.5, 2.0]], np.float32), axis=1)
    >>> numbers.tolist(), bool((np.abs(numbers * scale - [[1, -4], [0.5, 2]]) <= scale / 2).all())
    ([[127, -127], [64, 64]], True)
    """
    largest = np.abs(w).max(axis=1 - axis)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    by = scale[:, None] if axis == 0 else scale
    return np.clip(np.rint(w / by), -127, 127).astype(np.int8), scale


def _axes(graph: Any) -> dict[str, int]:
    """The axis of the scales of each weight that only products and tables read, by name."""
    found: dict[str, set[int | None]] = defaultdict(set)
    for node in graph.node:
        for place, name in enumerate(node.input):
            found[name].add(_axis(node, place))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for name in _read_in(attribute.g):
                    found[name].add(None)
    for value in graph.output:
        found[value.name].add(None)
    sure = {name: [axis for axis in axes if axis is not None] for name, axes in found.items() if None not in axes}
    return {name: min(axes) for name, axes in sure.items()}


def _axis(node: Any, place: int) -> int | None:
    """The axis of the scales of a weight that a node reads; None: the node is neither product nor table."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        return None
    match node.op_type, place:
        case "MatMul", 1:
            return 1
        case "MatMul", 0:
            return 0
        case "Gemm", 1:
            return 0 if attributes.get("transB", 0) else 1
        case "Gather", 0:
            return 0 if attributes.get("axis", 0) == 0 else None
        case "Transpose", 0:  # a table that is the head too, whose rows are the columns of the product
            return 0
    return None


def _read_in(graph: Any) -> set[str]:
    names = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _read_in(attribute.g)
    return names
