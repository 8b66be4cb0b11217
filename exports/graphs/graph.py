"""Write ONNX graphs: typed values in, typed values out, weights by reference."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike

from sae_runtime.bundle.tensors import TensorSpec

OPSET = 21
IR_VERSION = 10

Dimension = int | str
_TYPES = {
    "F32": ir.DataType.FLOAT,
    "F64": ir.DataType.DOUBLE,
    "F16": ir.DataType.FLOAT16,
    "I8": ir.DataType.INT8,
    "I64": ir.DataType.INT64,
}


def external(name: str, file: str, spec: TensorSpec) -> ir.ExternalTensor:
    """A tensor that stays in a safetensors file beside the graph, and is referred to by its byte offset."""
    return ir.ExternalTensor(file, spec.offset, spec.size, _TYPES[spec.dtype], shape=ir.Shape(spec.shape), name=name)


class Graph:
    """A graph under construction. Every value has a name of its own, and equal bundles give equal bytes.

    >>> graph = Graph("double")
    >>> x = graph.input("x", np.float32, ["n"])
    >>> graph.output(graph.op("Mul", x, graph.constant(2, np.float32)), "y", np.float32, ["n"])
    >>> [node.op_type for node in graph.model().graph]
    ['Mul']
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tape = ir.tape.Tape()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(
        self,
        name: str,
        dtype: DTypeLike,
        shape: Sequence[Dimension],
        default: ArrayLike | ir.ExternalTensor | None = None,
    ) -> ir.Value:
        """An input of the graph; with a default, callers may leave it out."""
        if isinstance(default, ir.ExternalTensor):
            value = self._initializers[name] = ir.Value(name=name, const_value=default)
        elif default is not None:
            value = self.constant(default, dtype, name=name)
        else:
            value = ir.Value(name=name)
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        value.shape = ir.Shape(shape)
        self._inputs.append(value)
        return value

    def constant(self, number: ArrayLike, dtype: DTypeLike, name: str | None = None) -> ir.Value:
        """A small constant that lies in the graph itself; equal ones are kept once."""
        array = np.asarray(number, dtype)
        name = name or f"{array.dtype}_{'x'.join(map(str, array.shape))}_{array.ravel().tolist()}"
        if name not in self._initializers:
            tensor = ir.tensor(array, name=name)
            self._initializers[name] = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
        return self._initializers[name]

    def weight(self, tensor: ir.ExternalTensor) -> ir.Value:
        """A tensor of `external` as a value."""
        if tensor.name not in self._initializers:
            self._initializers[tensor.name] = ir.Value(
                name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape
            )
        return self._initializers[tensor.name]

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        """Append a node with several outputs."""
        number = len(self._tape.nodes)
        values = [ir.Value(name=f"{kind.lower()}_{number}" + f"_{i}" * (i > 0)) for i in range(outputs)]
        self._tape.op_multi_out(kind, inputs, attributes, outputs=values, name=f"n{number}")
        return values

    def range(self, end: ir.Value) -> ir.Value:
        """0, 1, ... end - 1 for a scalar or one-element `end`."""
        scalar = self.op("Reshape", end, self.constant(np.empty(0), np.int64))
        return self.op("Range", self.constant(0, np.int64), scalar, self.constant(1, np.int64))

    def cast(self, value: ir.Value, dtype: DTypeLike) -> ir.Value:
        """The value in another type."""
        return self.op("Cast", value, to=ir.DataType.from_numpy(np.dtype(dtype)).value)

    def either(
        self,
        name: str,
        condition: ir.Value,
        then: Callable[["Graph"], Sequence[ir.Value]],
        otherwise: Callable[["Graph"], Sequence[ir.Value]],
    ) -> Sequence[ir.Value]:
        """The values that `then` makes where the condition (bool, one element) is true, else those of `otherwise`.

        Only one of them runs, since a node without work still takes onnxruntime a microsecond or two. Both may use
        values of this graph, which keeps their constants and weights.
        """
        branches = self._branch(f"{name}_then", then), self._branch(f"{name}_else", otherwise)
        return self.ops("If", len(branches[0].outputs), condition, then_branch=branches[0], else_branch=branches[1])

    def scan(self, name: str, step: Callable[["Graph", ir.Value], ir.Value], items: ir.Value) -> ir.Value:
        """step(graph, item) for every item i64 of items [t, ...], stacked.

        A step may use values of this graph, which keeps its constants and weights. Each step uses the memory of the
        step before again, while it is in cache.
        """

        def make(inner: Graph) -> Sequence[ir.Value]:
            item = ir.Value(name="item", type=ir.TensorType(ir.DataType.INT64))
            inner._inputs.append(item)
            return [step(inner, item)]

        return self.op("Scan", items, body=self._branch(name, make), num_scan_inputs=1)

    def _branch(self, name: str, make: Callable[["Graph"], Sequence[ir.Value]]) -> ir.Graph:
        inner = Graph(name)
        results = make(inner)
        branch = inner.model().graph
        branch.outputs.extend(results)
        for value in branch.initializers.values():
            tensor = value.const_value
            assert tensor is not None  # each has one
            if isinstance(tensor, ir.ExternalTensor):
                kept = self.weight(tensor)
            else:
                kept = self.constant(tensor.numpy(), tensor.dtype.numpy())
            ir.convenience.replace_all_uses_with(value, kept)
        branch.initializers.clear()
        for value in branch.inputs:
            value.name = f"{name}/{value.name}"
        for node in branch:
            node.name = f"{name}/{node.name}"
            for value in node.outputs:
                value.name = f"{name}/{value.name}"
        return branch

    def output(self, value: ir.Value, name: str, dtype: DTypeLike, shape: Sequence[Dimension]) -> None:
        """Make a value an output of the graph."""
        value.name = name
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        value.shape = ir.Shape(shape)
        self._outputs.append(value)

    def model(self) -> ir.Model:
        """The finished model."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._tape.nodes,
            initializers=tuple(self._initializers.values()),
            opset_imports={"": OPSET},
            name=self._name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="sae-runtime")
