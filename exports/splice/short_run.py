"""Run a spliced graph on tokens, up to its places or to its end, and give the activations before any edit."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle import files
from sae_runtime.engine import sessions

Array = NDArray[Any]
Window = NDArray[np.int64]  # the ids of one text [t]


class CannotRun(ValueError):
    """A graph cannot be run on tokens alone."""


def values_of(graph: Path, names: Sequence[str], windows: Iterable[Window], *, whole: bool = False) -> Iterator[Any]:
    """The tensors of these names for each window of ids, each [1, t, d].

    Args:
        graph: the spliced graph, in the folder of its weights.
        names: of tensors; only what they depend on is computed.
        windows: the ids of texts.
        whole: give the graph's first output too, as the last array.

    Raises:
        CannotRun: an input of the graph cannot be made up, or onnxruntime cannot run it.
    """
    model = ir.load(graph)
    outputs = [*names, *(str(value.name) for value in model.graph.outputs[: 1 if whole else 0])]
    inputs = [str(value.name) for value in model.graph.inputs]
    cut = ir.convenience.extract(model.graph, inputs, list(dict.fromkeys(outputs)))
    with files.scratch_file(graph) as path:
        try:
            ir.save(ir.Model(cut, ir_version=model.ir_version), path)
            session = sessions.open_session(path)
            given = [(value.name, value.type, value.shape) for value in session.get_inputs()]
            for window in windows:
                feed = {name: _made_up(name, kind, shape, window) for name, kind, shape in given}
                yield session.run(outputs, feed)
        except CannotRun:
            raise
        except Exception as error:  # onnxruntime has an exception class for each status code
            raise CannotRun(" ".join(str(error).split())[:200]) from error


def vocabulary(graph: Path) -> int:
    """The number of ids that a host knows, by the smallest table that it looks ids up in, else by its config.json.

    Raises:
        CannotRun: neither tells it.
    """
    model = ir.load(graph)
    sizes = []
    for value in model.graph.inputs:
        readers = [use.node for use in value.uses() if "ids" in str(value.name) and _is_of_words(str(value.name))]
        readers += [use.node for node in readers if node.op_type == "Cast" for use in node.outputs[0].uses()]
        tables = [node.inputs[0] for node in readers if node.op_type == "Gather"]
        sizes += [t.shape[0] for t in tables if t is not None and t.shape is not None and isinstance(t.shape[0], int)]
    config = graph.parent / "config.json"
    if not sizes and config.is_file():
        sizes = [json.loads(config.read_text()).get("vocab_size")]
    if not sizes or not isinstance(sizes[0], int):
        raise CannotRun("its vocabulary is not known")
    return min(sizes)


def _is_of_words(name: str) -> bool:
    return not re.search("position|type|segment", name)


def _made_up(name: str, kind: str, shape: Sequence[int | str | None], ids: Window) -> Array:
    """An input of a host for a text: its ids, a mask of ones, positions, no past."""
    dtype = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(kind)
    if re.search(r"past|cache|_(features|scale|shift|low|high|gate|direction|when|above|slots)$", name):
        floats = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        size = [n if isinstance(n, int) else 1 if i == 0 or "direction" in name else 0 for i, n in enumerate(shape)]
        return np.zeros(size, dtype or floats.get(kind, np.float32))
    if dtype is None or len(shape) != 2:
        raise CannotRun(f"it reads {name}, which cannot be made up")
    if any(isinstance(n, int) and n != wanted for n, wanted in zip(shape, (1, len(ids)), strict=True)):
        raise CannotRun(f"its input {name} has the fixed shape {list(shape)}")
    if "mask" in name:
        return np.ones((1, len(ids)), dtype)
    if "position" in name:
        return np.arange(len(ids), dtype=dtype)[None]
    if not _is_of_words(name):
        return np.zeros((1, len(ids)), dtype)
    if "ids" in name:
        return ids.astype(dtype)[None]
    raise CannotRun(f"it reads {name}, which cannot be made up")
