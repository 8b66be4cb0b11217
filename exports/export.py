"""Put the graphs into a bundle; each one agrees with the numpy witness before it replaces another."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sae_runtime.bundle import file_set
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.folder import DERIVED, MANIFEST, SAMPLE, WEIGHTS, Bundle
from sae_runtime.bundle.graphs import BY_DEFAULT, DECODE, ENCODE, EXACT, GPU, GRAPHS, JOINT, ON_REQUEST, STEER
from sae_runtime.bundle.manifest import GraphRecord, to_json
from sae_runtime.bundle.recorded_sizes import SAMPLE_ROWS
from sae_runtime.bundle.tensors import TensorSpec, save_tensors
from sae_runtime.engine.sessions import refuse_other_bytes
from sae_runtime.exports.certified.exact import exact_graph
from sae_runtime.exports.certified.gpu import gpu_graph
from sae_runtime.exports.check import check_graph
from sae_runtime.exports.derived import active_activations, has_integers, write_derived
from sae_runtime.exports.graphs.decode import decode_graph
from sae_runtime.exports.graphs.encode import encode_graph
from sae_runtime.exports.graphs.joint import joint_graph
from sae_runtime.exports.graphs.steer import steer_graph

Builder = Callable[[Bundle, Mapping[str, TensorSpec]], ir.Model]
BUILDERS: Mapping[str, Builder] = {
    ENCODE.file: lambda bundle, specs: encode_graph(bundle),
    EXACT.file: exact_graph,
    GPU.file: gpu_graph,
    JOINT.file: joint_graph,
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
    """Write the graphs of `sae_runtime.bundle.graphs` into a bundle; on failure, the bundle stays as it was.

    Args:
        path: a bundle's folder.
        graphs: any of "exact", which is made where int8 can be used (see `has_integers`), and "gpu", its float16
            counterpart for GPUs.
        activations: typical activations [m, d_in], which replace the bundle's sample; int8 is most precise on these.
            Of more than 4,096 rows, every second, third, ... is kept.
        builders: makes each graph, by its file name.

    Returns:
        The bundle with its new graphs.

    Raises:
        ValueError: a graph is unknown, the path is not UTF-8, activations are not [m, d_in] or not finite, or the
            bundle is one of the installed package.
        BundleError: the folder is no valid bundle, or a graph disagrees with the witness.

    >>> sorted(export(bundle_path, graphs=[]).manifest.graphs)
    ['decode.onnx', 'encode.onnx', 'encode_joint.onnx', 'steer.onnx']
    """
    if unknown := set(graphs) - set(ON_REQUEST):
        raise ValueError(
            f"graphs must be some of {', '.join(ON_REQUEST)}, got {', '.join(sorted(unknown))}; leave those out"
        )
    bundle = bundles.read(path)
    bundles.refuse_kept(bundle.path)
    bundles.refuse_deployed(bundle.path)
    refuse_other_bytes(bundle.path)
    if activations is not None:
        _check_activations(bundle, activations)
        activations = activations[:: -(-len(activations) // SAMPLE_ROWS)]
    with bundles.replaced_bundle(bundle, MANIFEST, WEIGHTS) as staged:
        listed = {name: record for name, record in bundle.manifest.files.items() if name != DERIVED}
        if activations is not None:
            save_tensors(staged / SAMPLE, {"x": np.ascontiguousarray(activations, np.float32)})
            listed[SAMPLE] = bundles.record(staged / SAMPLE)
        specs = write_derived(staged / DERIVED, bundle, _typical(bundle, activations), graphs)
        if specs:
            listed[DERIVED] = bundles.record(staged / DERIVED)
        records = {}
        for graph in sorted(GRAPHS, key=lambda graph: graph.file):
            asked = graph.asked_as is None or graph.asked_as in graphs
            if not (asked and graph.fits(bundle.manifest)) or (graph is EXACT and not has_integers(bundle)):
                continue
            model = builders[graph.file](bundle, specs)
            ir.save(model, staged / graph.file)
            check_graph(bundle, staged / graph.file)
            tensors = [value.const_value for value in model.graph.initializers.values()]
            records[graph.file] = GraphRecord(
                **dataclasses.asdict(bundles.record(staged / graph.file)),
                row_independent=graph.row_independent,
                derived=any(isinstance(tensor, ir.ExternalTensor) and tensor.location == DERIVED for tensor in tensors),
            )
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


def _typical(bundle: Bundle, activations: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The activations, or the bundle's own sample, or, where it has no sample, made-up activations."""
    typical = bundle.sample() if activations is None else activations
    if typical is None:
        return active_activations(bundle, np.random.default_rng(1), 4 * bundle.manifest.architecture.d_in)
    return np.ascontiguousarray(typical, np.float32)
