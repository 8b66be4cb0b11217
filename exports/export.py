"""Put the graphs into a bundle, each one compared with the numpy witness before it replaces another."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle import file_set
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.folder import DERIVED, MANIFEST, SAMPLE, Bundle
from sae_runtime.bundle.graphs import (
    BY_DEFAULT,
    DECODE,
    ENCODE,
    EXACT,
    GPU,
    GRAPHS,
    JOINT,
    ON_REQUEST,
    STEER,
    BundleGraph,
)
from sae_runtime.bundle.manifest import FileRecord, GraphRecord, to_json
from sae_runtime.bundle.tensors import TensorSpec, save_tensors
from sae_runtime.exports.certified.exact import exact_graph
from sae_runtime.exports.certified.gpu import gpu_graph
from sae_runtime.exports.check import check_graph, sample, served
from sae_runtime.exports.derived import has_integers, write_derived
from sae_runtime.exports.graphs.decode import decode_graph
from sae_runtime.exports.graphs.encode import encode_graph
from sae_runtime.exports.graphs.joint import joint_graph
from sae_runtime.exports.graphs.steer import steer_graph

__all__ = ["BUILDERS", "Builder", "export", "sample", "served"]

Builder = Callable[[Bundle, Mapping[str, TensorSpec]], ir.Model]
BUILDERS: Mapping[str, Builder] = {
    ENCODE.file: lambda bundle, specs: encode_graph(bundle),
    EXACT.file: exact_graph,
    GPU.file: gpu_graph,
    JOINT.file: lambda bundle, specs: joint_graph(bundle, specs.get("max_density")),
    DECODE.file: lambda bundle, specs: decode_graph(bundle),
    STEER.file: steer_graph,
}


def export(
    path: str | Path,
    *,
    graphs: Collection[str] = BY_DEFAULT,
    activations: NDArray[np.float32] | None = None,
    builders: Mapping[str, Builder] = BUILDERS,
) -> Bundle:
    """Write the graphs of `sae_runtime.bundle.graphs` into a bundle.

    They take the place of those that are there already: an export that dies or fails leaves the bundle as it was.

    Args:
        path: a bundle's folder.
        graphs: graphs besides those that every bundle has: "exact", which is made where int8 can be used (see
            `has_integers`), and "gpu", which is "exact" for GPUs.
        activations: typical ones [m, d_in], to take the place of the bundle's sample; they make int8 fine.
        builders: what makes each graph, by its file name.

    Returns:
        The bundle as it is now.

    Raises:
        ValueError: an unknown graph, or activations of another width or that are not finite.
        BundleError: the folder is no valid bundle, or a graph disagrees with the witness.

    >>> sorted(export(bundle_path, graphs=[]).manifest.graphs)
    ['decode.onnx', 'encode.onnx', 'encode_joint.onnx', 'steer.onnx']
    """
    if unknown := set(graphs) - set(ON_REQUEST):
        raise ValueError(
            f"graphs must be some of {', '.join(ON_REQUEST)}, got {', '.join(sorted(unknown))}; leave those out"
        )
    bundle = bundles.read(path)
    if activations is not None:
        _check_activations(bundle, activations)
    with file_set.replaced_together(bundle.path, last=MANIFEST) as staged:
        listed = {name: record for name, record in bundle.manifest.files.items() if name != DERIVED}
        if activations is not None:
            listed[SAMPLE] = _write_sample(staged / SAMPLE, activations)
        specs = write_derived(staged / DERIVED, bundle, _typical(bundle, activations), graphs)
        if specs:
            listed[DERIVED] = bundles.record(staged / DERIVED)
        records = {}
        for graph in _wanted(bundle, graphs):
            model = builders[graph.file](bundle, specs)
            ir.save(model, staged / graph.file)
            check_graph(bundle, staged / graph.file)
            records[graph.file] = _graph_record(staged / graph.file, graph, model)
        records = dict(sorted(records.items()))
        manifest = dataclasses.replace(bundle.manifest, graphs=records, files=listed)
        (staged / MANIFEST).write_text(to_json(manifest))
        for name in {*(graph.file for graph in GRAPHS), DERIVED} - {*records, *listed}:
            file_set.stage_removal(staged, name)  # an earlier export made it
    return bundles.read(path, verify=False)


def _check_activations(bundle: Bundle, activations: NDArray[np.float32]) -> None:
    d_in = bundle.manifest.architecture.d_in
    if activations.ndim != 2 or not len(activations) or activations.shape[1] != d_in:
        raise ValueError(
            f"activations must be [tokens, {d_in}], got {list(activations.shape)}; give those of the SAE's hook"
        )
    if not np.isfinite(activations).all():
        raise ValueError("activations hold NaN or Inf; drop those rows")


def _write_sample(path: Path, activations: NDArray[np.float32]) -> FileRecord:
    save_tensors(path, {"x": np.ascontiguousarray(activations, np.float32)})
    return bundles.record(path)


def _typical(bundle: Bundle, activations: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The activations, or the bundle's own sample, or where there is none a guess from the weights."""
    if activations is not None:
        return np.ascontiguousarray(activations, np.float32)
    typical = bundle.sample()
    if typical is not None:
        return typical
    architecture = bundle.manifest.architecture
    return sample(architecture, bundle.weights(), np.random.default_rng(1), 4 * architecture.d_in)


def _wanted(bundle: Bundle, graphs: Collection[str]) -> list[BundleGraph]:
    """The graphs that this bundle can have and that were asked for, or that every export makes."""
    fitting = [graph for graph in GRAPHS if graph.fits(bundle.manifest)]
    asked = [graph for graph in fitting if graph.asked_as is None or graph.asked_as in graphs]
    return [graph for graph in asked if graph is not EXACT or has_integers(bundle)]


def _graph_record(path: Path, graph: BundleGraph, model: ir.Model) -> GraphRecord:
    weights = (value.const_value for value in model.graph.initializers.values())
    derived = any(isinstance(tensor, ir.ExternalTensor) and tensor.location == DERIVED for tensor in weights)
    record = bundles.record(path)
    return GraphRecord(size=record.size, sha256=record.sha256, row_independent=graph.row_independent, derived=derived)
