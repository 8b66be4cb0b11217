"""Write a spliced graph, its part that gives features, and the files that both read, all of them or none."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from sae_runtime.bundle import files
from sae_runtime.bundle.folder import record
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.splices import CUT_OF, cut_graph, read_splices
from sae_runtime.exports.graphs.external import relocate
from sae_runtime.exports.splice.cutting import features_part
from sae_runtime.exports.splice.inline_weights import take_inline_weights
from sae_runtime.exports.splice.placement import Placement

Check = Callable[[Path, Path | None], None]
"""Looks at the whole graph and its part before they have their names."""


def write_spliced(model: ir.Model, path: Path, placement: Placement, check: Check, *, force: bool) -> Path | None:
    """Write a graph with what `placement` copies beside it, and give the path of its part; None if no SAE is read.

    Args:
        model: the graph; if it holds many weights itself, it reads them from a file afterwards.
        path: the graph to write.
        placement: the files of its folder.
        check: runs when all is written but has no names yet; if it raises, nothing is written.
        force: replace files that exist.

    Raises:
        FileExistsError: a file exists and `force` is not set, or a graph of its own has the name of the part.
    """
    copies = placement.copies(path)
    is_read = any(spliced.outputs for spliced in read_splices(model.metadata_props).values())
    weights = take_inline_weights(model.graph) if is_read else None
    part = features_part(model) if is_read else None
    cut = None if part is None else cut_graph(path)
    if cut is not None and force and _kind(cut) == "whole":
        raise FileExistsError(
            f"{cut} is a graph of its own, and the part that gives features would replace it; rename it"
        )
    names = [*copies, *(file.name for file in (weights, cut, path) if file is not None)]
    if weights is not None and weights.is_at(path.parent / weights.name):
        names.remove(weights.name)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    read = {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    # The part names the graph that it was cut of, so a part beside another graph does no harm.
    with files.new_files_in(path.parent, names, force=force, apart=set(names) - read) as to_fill:
        for name, file in copies.items():
            shutil.copyfile(file, to_fill[name])
        if weights is not None and weights.name in to_fill:
            weights.write(to_fill[weights.name])
        whole = to_fill[path.name]
        ir.save(model, whole)
        if part is not None and cut is not None:
            part.metadata_props[CUT_OF] = record(whole).sha256
            ir.save(part, to_fill[cut.name])
        now = {name: file.relative_to(whole.parent).as_posix() for name, file in to_fill.items()}
        with _reading(whole, now) as graph, _reading(whole if cut is None else to_fill[cut.name], now) as cut_off:
            check(graph, None if cut is None else cut_off)
    old = cut_graph(path)
    if force and cut is None and _kind(old) == "part":
        old.unlink()  # the part of the graph that was replaced
    return cut


def _kind(graph: Path) -> Literal["part", "whole"] | None:
    """Whether a graph is the part of one; None if there is none."""
    try:
        return "part" if CUT_OF in read_metadata(graph) else "whole"
    except (OSError, ValueError):
        return None


@contextmanager
def _reading(graph: Path, names: Mapping[str, str]) -> Iterator[Path]:
    """Give a graph that reads files under the names that they have until all of them are written."""
    if all(name == now for name, now in names.items()):
        yield graph
        return
    with files.scratch_file(graph) as copy:
        relocate(graph, copy, names)
        yield copy
