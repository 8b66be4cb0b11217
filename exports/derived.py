"""derived.safetensors: what graphs read besides the weights. Every export computes it again from the weights."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import Bundle
from sae_runtime.bundle.graphs import EXACT, GPU
from sae_runtime.bundle.normalise import normalised
from sae_runtime.bundle.tensors import TensorSpec, read_header, save_tensors
from sae_runtime.exports.certified.gpu import half_precision
from sae_runtime.exports.certified.integers import Arrays, quantise


def has_integers(bundle: Bundle) -> bool:
    """Whether encode_exact.onnx can be made: `EXACT.fits`, and some threshold is above 0 where thresholds select.

    Where every positive feature is kept, a cut leaves out none.
    """
    cuts = bundle.manifest.architecture.selection != "threshold" or bool(bundle.tensor("threshold").any())
    return EXACT.fits(bundle.manifest) and cuts


def write_derived(path: Path, bundle: Bundle, x: NDArray[np.float32], graphs: Collection[str]) -> dict[str, TensorSpec]:
    """Compute what these graphs read besides the weights, and write it to `path` unless they read nothing.

    Args:
        path: of the file.
        bundle: whose weights they are.
        x: typical activations [m, d_in], for which int8 is made fine.
        graphs: some of "exact" and "gpu".

    Returns:
        Where each array lies in the file.
    """
    arrays: Arrays = {}
    allocation, norm = bundle.manifest.allocation, bundle.manifest.architecture.norm
    if allocation is not None and allocation.kind == "feature":
        arrays["max_density"] = default_max_density(bundle)
    weights, x = bundle.weights(), normalised(x, norm)[0]
    exact = "exact" in graphs and has_integers(bundle)
    gpu = "gpu" in graphs and GPU.fits(bundle.manifest)
    if exact:
        arrays |= quantise(weights, x, np.random.default_rng(0)).arrays()
    if gpu:
        arrays |= half_precision(weights, x)
    if exact or gpu:
        arrays["W_enc_rows"] = weights["W_enc"].T
    if not arrays:
        return {}
    save_tensors(path, arrays)
    return dict(read_header(path))


def default_max_density(bundle: Bundle) -> NDArray[np.float64]:
    """The largest density of each feature with which a feature choice bundle was fitted: float64 [d_sae].

    Raises:
        ValueError: the bundle is not of feature choice.
    """
    allocation = bundle.manifest.allocation
    if allocation is None or allocation.quota is None:
        kind = f"of {allocation.kind} choice" if allocation else "of no known allocation"
        raise ValueError(f"only feature choice limits densities, this bundle is {kind}; encode it without them")
    return quota.max_densities(allocation.quota, allocation.k, bundle.manifest.architecture.d_sae)
