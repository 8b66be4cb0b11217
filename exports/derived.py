"""derived.safetensors: what graphs read besides the weights, computed from them, and rebuilt by every export."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from sae_runtime import files, quota
from sae_runtime.bundle import DERIVED, Bundle, record
from sae_runtime.exports.gpu import half_precision
from sae_runtime.exports.integers import Arrays, quantise
from sae_runtime.exports.select import GROUP
from sae_runtime.normalise import normalised
from sae_runtime.tensors import TensorSpec, read_header, save_tensors

_SMALLEST = 512  # features; a product with fewer is as fast as all that could save it


def has_integers(bundle: Bundle) -> bool:
    """Whether int8 graphs can be made: d_sae is at least 512 and a multiple of 16, and a cut leaves out most features.

    It does not where every positive feature is kept, nor where every run of neighbours has its own largest.
    """
    encoder = bundle.manifest.encoder
    cuts = encoder.selection == "topk" or (encoder.selection == "threshold" and bool(bundle.tensor("threshold").any()))
    return encoder.d_sae >= _SMALLEST and encoder.d_sae % GROUP == 0 and cuts


def has_half(bundle: Bundle) -> bool:
    """Whether encode_gpu.onnx can be made: not where every run of neighbours has its own largest."""
    return bundle.manifest.encoder.selection != "groupmax"


def write_derived(bundle: Bundle, x: NDArray[np.float32], precisions: Collection[str]) -> dict[str, TensorSpec]:
    """Compute and write what the graphs of these precisions need; removes the file where they need nothing.

    Where the file changes, graphs of an earlier export that read it go first: they must never meet other weights.

    Args:
        bundle: whose weights they are.
        x: typical activations [m, d_in], for which int8 is made fine.
        precisions: some of "exact", "fast", "float16" and "gpu".

    Returns:
        Where each array lies in the file.
    """
    arrays: Arrays = {}
    allocation, norm = bundle.manifest.allocation, bundle.manifest.encoder.norm
    if allocation is not None and allocation.kind == "feature":
        arrays["cap"] = default_cap(bundle)
    weights, x = bundle.weights(), normalised(x, norm)[0]
    if has_integers(bundle) and {"exact", "fast"} & set(precisions):
        arrays |= quantise(weights, x, np.random.default_rng(0))
    if "gpu" in precisions and has_half(bundle):
        arrays |= half_precision(weights, x)
    if ("gpu" in precisions and has_half(bundle)) or ("exact" in precisions and "int8_weights" in arrays):
        arrays["W_enc_rows"] = weights["W_enc"].T
    if "float16" in precisions:
        arrays["W_enc_half"] = weights["W_enc"].astype(np.float16)
    path = bundle.path / DERIVED
    if not arrays:
        _remove_readers(bundle)
        path.unlink(missing_ok=True)
        return {}
    with files.new_file(path, force=True) as partial:
        save_tensors(partial, arrays)
        if record(partial) != bundle.manifest.files.get(DERIVED):
            _remove_readers(bundle)
    return dict(read_header(path))


def _remove_readers(bundle: Bundle) -> None:
    for name, graph in bundle.manifest.graphs.items():
        if graph.derived:
            (bundle.path / name).unlink(missing_ok=True)


def default_cap(bundle: Bundle) -> NDArray[np.float64]:
    """The cap of each feature that a feature choice bundle was fitted with: float64 [d_sae].

    Raises:
        ValueError: the bundle is not of feature choice.
    """
    allocation = bundle.manifest.allocation
    if allocation is None or allocation.quota is None:
        kind = f"of {allocation.kind} choice" if allocation else "of no known allocation"
        raise ValueError(f"only feature choice has caps, this bundle is {kind}")
    return quota.caps(allocation.quota, allocation.k, bundle.manifest.encoder.d_sae)
