"""Write ONNX graphs: typed values in, typed values out, weights by reference."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike

from sae_runtime.bundle.folder import DERIVED
from sae_runtime.bundle.tensors import TensorSpec
from sae_runtime.exports.graphs.external import external

OPSET = 21
IR_VERSION = 10

Dimension = int | str
Operand = ir.Value | ArrayLike | None  # whole numbers become int64, other numbers float32


class Graph:
    """A graph under construction.

    No two values share a name. Equal bundles give equal bytes.

    >>> graph = Graph("double")
    >>> x = graph.input("x", np.float32, ["n"])
    >>> graph.output(graph.op("Mul", x, 2.0), "y", np.float32, ["n"])
    >>> [node.op_type for node in graph.model().graph]
    ['Mul']
    """

    def __init__(self, name: str, within: "Graph | None" = None) -> None:
        """An empty graph; a branch of another graph shares that graph's constants and weights."""
        self._name = name
        self._prefix = "" if within is None else f"{name}/"
        self._tape = ir.tape.Tape()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {} if within is None else within._initializers

    def input(
        self,
        name: str,
        dtype: DTypeLike,
        shape: Sequence[Dimension],
        default: ArrayLike | ir.ExternalTensor | None = None,
    ) -> ir.Value:
        """An input of the graph; callers may leave out an input that has a default."""
        if isinstance(default, ir.ExternalTensor):
            value = self.weight(default)
        elif default is not None:
            value = self.constant(default, dtype, name=name)
        else:
            value = ir.Value(name=self._prefix + name)
        self._inputs.append(_typed(value, dtype, shape))
        return value

    def constant(self, number: ArrayLike, dtype: DTypeLike, name: str | None = None) -> ir.Value:
        """A small constant that the graph itself holds, once for all equal ones.

        `op` makes constants of int64 and float32 from plain numbers.
        """
        array = np.asarray(number, dtype)
        name = name or f"{array.dtype}_{'x'.join(map(str, array.shape))}_{array.ravel().tolist()}"
        return self.weight(ir.tensor(array, name=name))

    def weight(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A tensor as a value of the graph, which holds one tensor of a name."""
        name = str(tensor.name)
        if name not in self._initializers:
            self._initializers[name] = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
            )
        return self._initializers[name]

    def derived(self, name: str, specs: Mapping[str, TensorSpec]) -> ir.Value:
        """An array of derived.safetensors as a value; `specs` says where the file holds it."""
        return self.weight(external(name, DERIVED, specs[name]))

    def op(self, kind: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """Append a node with one output; a plain number among the inputs becomes a constant, int64 or float32."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: Operand, **attributes: Any) -> Sequence[ir.Value]:
        """Append a node with several outputs; inputs as in `op`."""
        name = f"{self._prefix}{kind.lower()}_{len(self._tape.nodes)}"
        values = [ir.Value(name=name + f"_{i}" * (i > 0)) for i in range(outputs)]
        operands = [self._operand(value) for value in inputs]
        node = f"{self._prefix}n{len(self._tape.nodes)}"
        self._tape.op_multi_out(kind, operands, attributes, outputs=values, name=node)
        return values

    def _operand(self, value: Operand) -> ir.Value | None:
        if value is None or isinstance(value, ir.Value):
            return value
        array = np.asarray(value)
        return self.constant(array, {"i": np.int64, "f": np.float32}[array.dtype.kind])

    def range(self, end: ir.Value) -> ir.Value:
        """0, 1, ... end - 1 for a scalar or one-element `end`."""
        return self.op("Range", 0, self.op("Reshape", end, np.empty(0, np.int64)), 1)

    def flat(self, value: ir.Value, *tail: int) -> ir.Value:
        """A value as [-1, *tail]: a vector, or rows of a fixed size; sizes of 0 are kept."""
        return self.op("Reshape", value, [-1, *tail], allowzero=1)

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

        Only one of the two runs, since a node without work still costs onnxruntime a microsecond or two. Both may use
        values of this graph.
        """
        branches = []
        for suffix, make in (("then", then), ("else", otherwise)):
            inner = Graph(f"{name}_{suffix}", within=self)
            branches.append(inner._graph(make(inner)))
        return self.ops("If", len(branches[0].outputs), condition, then_branch=branches[0], else_branch=branches[1])

    def loop(self, name: str, step: Callable[["Graph", ir.Value], ir.Value], items: ir.Value) -> ir.Value:
        """step(graph, item) for every item i64 of items [t, ...], stacked.

        A step may use values of this graph. It reuses the memory of the step before it, while that is in cache. Scan
        would do the same, but OpenVINO refuses a Scan that uses values of the graph around it.
        """
        inner = Graph(name, within=self)
        number = ir.Value(name=f"{name}/number", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        more = ir.Value(name=f"{name}/more", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        inner._inputs += [number, more]
        made = step(inner, inner.op("Gather", items, number))
        count = self.op("Squeeze", self.op("Shape", items, start=0, end=1))
        body = inner._graph([inner.op("Identity", more), made])
        return self.op("Loop", count, self.constant(True, np.bool_), body=body)

    def output(self, value: ir.Value, name: str, dtype: DTypeLike, shape: Sequence[Dimension]) -> None:
        """Make a value an output of the graph."""
        value.name = name
        self._outputs.append(_typed(value, dtype, shape))

    def model(self) -> ir.Model:
        """The finished model."""
        graph = self._graph(self._outputs, initializers=tuple(self._initializers.values()), opset_imports={"": OPSET})
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="sae-runtime")

    def _graph(self, outputs: Sequence[ir.Value], **parts: Any) -> ir.Graph:
        return ir.Graph(self._inputs, outputs, nodes=self._tape.nodes, name=self._name, **parts)


def _typed(value: ir.Value, dtype: DTypeLike, shape: Sequence[Dimension]) -> ir.Value:
    value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))), ir.Shape(shape)
    return value
