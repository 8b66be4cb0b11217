"""The rules by which Triton's ONNX backend takes a graph with its configuration; Triton is not needed to check them.

They are those of `ValidateInputs`, `ValidateOutputs` and `CompareDimsSupported` in onnxruntime.cc of the backend.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_runtime.core.labels import shown
from sae_runtime.engine.sessions import open_session
from sae_runtime.serve.tensors import of_onnx
from sae_runtime.serve.triton.config import ConfigTensor, ModelConfig

Form = tuple[str, tuple[int, ...]]
"""Datatype and sizes of a graph's tensor; -1: any size."""


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a graph, as onnxruntime names them.

    Attributes:
        required: inputs without a default.
        defaulted: inputs with a default.
        outputs: of the graph.
    """

    required: Mapping[str, Form]
    defaulted: Mapping[str, Form]
    outputs: Mapping[str, Form]


def signature(graph: Path) -> Signature:
    """The inputs and outputs of a graph, which onnxruntime opens.

    Raises:
        BundleError: onnxruntime refuses the graph.

    >>> signature(Path(bundle_path) / "encode.onnx").required
    {'x': ('FP32', (-1, 24))}
    """
    session = open_session(graph, threads=1, optimise=False)
    return Signature(
        _forms(session.get_inputs()), _forms(session.get_overridable_initializers()), _forms(session.get_outputs())
    )


def _forms(tensors: Any) -> dict[str, Form]:
    return {
        one.name: (of_onnx(one.type), tuple(size if isinstance(size, int) else -1 for size in one.shape))
        for one in tensors
    }


def faults(config: ModelConfig, graph: Signature) -> Iterator[str]:
    """A sentence for each rule of the ONNX backend that a configuration breaks.

    >>> graph = signature(Path(bundle_path) / "encode.onnx")
    >>> x, values = ConfigTensor("x", "FP32", (7,)), ConfigTensor("values", "FP32", (-1,))
    >>> config = ModelConfig(name="m", backend="onnxruntime", max_batch_size=8, inputs=(x,), outputs=(values,))
    >>> list(faults(config, graph))
    ['input x has the sizes [-1, 7], and the graph has [-1, 24]']
    """
    inputs = {**graph.required, **graph.defaulted}
    names = Counter(tensor.name for tensor in (*config.inputs, *config.outputs))
    yield from (f"{shown(name)} is declared {count} times" for name, count in names.items() if count > 1)
    declared = {tensor.name for tensor in config.inputs if not tensor.optional}
    for name in graph.required.keys() - declared:
        yield f"input {shown(name)} has no default in the graph and is not declared as required"
    for tensor in config.inputs:
        if tensor.optional and config.max_batch_size > 0:
            yield f"input {tensor.name} is optional, for which max_batch_size must be 0, got {config.max_batch_size}"
        if not tensor.optional and tensor.name in graph.defaulted:
            yield f"input {tensor.name} has a default in the graph, so it must be optional or not declared"
        yield from _tensor_faults("input", tensor, inputs, config.max_batch_size > 0)
    if not config.outputs:
        yield "no output is declared"
    for tensor in config.outputs:
        yield from _tensor_faults("output", tensor, graph.outputs, config.max_batch_size > 0)


def _tensor_faults(what: str, tensor: ConfigTensor, known: Mapping[str, Form], batched: bool) -> Iterator[str]:
    named = f"{what} {shown(tensor.name)[1:-1]}"
    if tensor.name not in known:
        yield f"the graph has no {named}; it has {', '.join(known)}"
        return
    datatype, sizes = known[tensor.name]
    if tensor.datatype != datatype:
        yield f"{named} is {tensor.datatype}, and the graph has {datatype}"
    if not tensor.dims:
        yield f"{named} has no dims, which Triton refuses; write [ 1 ] and a reshape"
        return
    if batched and (not sizes or sizes[0] != -1):
        yield f"{named} has the sizes {list(sizes)} in the graph, whose first must be free for a batch"
        return
    own = tensor.dims if tensor.reshape is None else tensor.reshape
    if batched:
        own = (-1, *own)
    elif not sizes and own == (1,):  # a scalar
        return
    fits = len(own) == len(sizes)
    if fits and what == "input":  # an input may be narrower than the graph's
        fits = all(theirs in (-1, size) for size, theirs in zip(own, sizes, strict=True))
    elif fits:
        fits = own == sizes
    if not fits:
        yield f"{named} has the sizes {list(own)}, and the graph has {list(sizes)}"
