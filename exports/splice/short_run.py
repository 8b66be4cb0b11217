"""Run a spliced graph on tokens, up to its places or to its end, and give the activations before any edit."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle import files
from sae_runtime.bundle.splices import read_splices
from sae_runtime.bundle.typed_json import read_file
from sae_runtime.bundle.vocabulary import is_of_words
from sae_runtime.engine import sessions
from sae_runtime.engine.trial import Arrays, made_up_inputs

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
            ir.save(ir.Model(cut, ir_version=model.ir_version, metadata_props=model.metadata_props), path)
            session = sessions.open_session(path)
            for window in windows:
                yield session.run(outputs, _inputs(session, window, graph.parent))
        except CannotRun:
            raise
        except Exception as error:  # onnxruntime has an exception class for each status code
            raise CannotRun(sessions.sentence(error)[:200]) from error


def vocabulary(graph: Path, folder: Path) -> int:
    """The number of ids that a host knows, by the smallest table that it looks ids up in, else by its config.json.

    Args:
        graph: the host's graph, or a spliced one.
        folder: where the host's config.json may be.

    Raises:
        CannotRun: neither tells it.
    """
    model = ir.load(graph)
    sizes = []
    for value in model.graph.inputs:
        readers = [use.node for use in value.uses() if is_of_words(str(value.name))]
        readers += [use.node for node in readers if node.op_type == "Cast" for use in node.outputs[0].uses()]
        tables = [node.inputs[0] for node in readers if node.op_type == "Gather"]
        sizes += [t.shape[0] for t in tables if t is not None and t.shape is not None and isinstance(t.shape[0], int)]
    return min(sizes or [_written_size(folder / "config.json")])


def _written_size(config: Path) -> int:
    """The vocab_size that a config.json tells."""
    try:
        return int(read_file(dict[str, Any], config, foreign=True)["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CannotRun("its vocabulary is not known") from error


def _inputs(session: Any, ids: Window, folder: Path) -> Arrays:
    """The inputs of a host for a text.

    Raises:
        CannotRun: the host reads something that the ids of a text do not tell.
    """
    spliced = read_splices(session.get_modelmeta().custom_metadata_map).values()
    own = {name for one in spliced for name in one.inputs}
    feed = made_up_inputs(session, ids[None], folder)
    for name, array in feed.items():
        if name in own or not array.size:  # a past has no tokens
            continue
        if array.dtype.kind == "f" or not re.search("ids|mask|position|type|segment", name):
            raise CannotRun(f"it reads {name}, which cannot be made up")
        if array.shape not in ((1, len(ids)), (len(ids),)):
            raise CannotRun(f"its input {name} has the fixed shape {list(array.shape)}")
    return feed
