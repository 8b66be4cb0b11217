"""Infer the types and shapes of the values of a graph, by which the tensors are found that may be activations.

onnx infers most. It does not know onnxruntime's own operators, and loses track where a graph computes a width, as when
the heads of attention are put together again. Two short runs with different numbers of requests and tokens tell the
rest.
"""

import re
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from sae_runtime.engine.sessions import CPU, NO_FALLBACK
from sae_runtime.engine.trial import Arrays, run_on_made_up_inputs


def infer_shapes(proto: Any) -> Any:
    """The graph with the shapes that onnx infers, without its large weights."""
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def unclear_values(graph: ir.Graph) -> list[ir.Value]:
    """The values that may be activations [b, t, width] of which the graph does not tell the width.

    >>> unclear_values(ir.load(host_path).graph)
    []
    """
    named = {str(dim) for value in graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    values = (value for node in graph for value in node.outputs if value.name)
    return [value for value in values if _is_unclear(value, named)]


def _is_unclear(value: ir.Value, named: set[str]) -> bool:
    """Whether type, rank or width are unknown; a width that an input's size names, such as past + time, is known."""
    if value.shape is None or value.dtype is None:
        return True
    if not value.dtype.is_floating_point() or len(value.shape) != 3 or isinstance(value.shape[2], int):
        return False
    return named.isdisjoint(re.findall(r"\w+", str(value.shape[2])))


def measure_shapes(model: ir.Model, folder: Path) -> None:
    """Set the types, ranks and widths of unclear values to those of two short runs, where both runs agree.

    Nothing changes where the graph does not run here on inputs that are made up.

    Args:
        model: the whole model.
        folder: where its external weights are.
    """
    unclear = unclear_values(model.graph)
    proto = ir.to_proto(model)
    given = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in unclear if value.name not in given)
    try:
        session = _opened(proto, folder)
        runs = [run_on_made_up_inputs(session, folder, batch=batch, time=time)[1] for batch, time in ((2, 5), (3, 7))]
    except Exception:  # onnxruntime has no class for each failure; what is unclear stays so
        return
    for value in unclear:
        _set_shape(value, *runs)


def _set_shape(value: ir.Value, one: Arrays, other: Arrays) -> None:
    first, second = one[str(value.name)], other[str(value.name)]
    if first.ndim and first.ndim == second.ndim and first.shape[-1] == second.shape[-1]:
        before = [None] * (first.ndim - 1) if value.shape is None else list(value.shape)[:-1]
        value.shape = ir.Shape([*before, first.shape[-1]])
        value.type = value.type or ir.TensorType(ir.DataType.from_numpy(first.dtype))


def _opened(proto: Any, folder: Path) -> Any:
    """A session without optimisation for a graph in memory, whose external weights are in the folder."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=list(CPU), **NO_FALLBACK)
