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
from sae_runtime.exports.graphs.steer import ROWS


def has_integers(bundle: Bundle) -> bool:
    """Whether encode_exact.onnx can be made: `EXACT.fits`, and a threshold, where the SAE has them, is above 0.

    Where every positive feature is active, no cut leaves out a feature.
    """
    cuts = bundle.manifest.architecture.selection != "threshold" or bool(bundle.tensor("threshold").any())
    return EXACT.fits(bundle.manifest) and cuts


def write_derived(path: Path, bundle: Bundle, x: NDArray[np.float32], graphs: Collection[str]) -> dict[str, TensorSpec]:
    """Compute what these graphs read besides the weights, and write it to `path` if they read anything.

    Args:
        path: of the file.
        bundle: the SAE.
        x: typical activations [m, d_in]; the int8 product is most precise on activations like these.
        graphs: any of "exact" and "gpu".

    Returns:
        Type, shape and offset of each array in the file.

    >>> from sae_runtime.bundle.folder import read
    >>> sorted(write_derived(Path("derived.safetensors"), read(bundle_path), x, graphs=["gpu"]))
    ['W_enc_rows', 'half_kappa', 'half_weights']
    """
    arrays: Arrays = {}
    allocation, norm = bundle.manifest.allocation, bundle.manifest.architecture.norm
    if allocation is not None and allocation.kind == "feature":
        arrays["max_density"] = default_max_density(bundle)
    weights, x = bundle.weights(), normalised(x, norm)[0]
    if "exact" in graphs and has_integers(bundle):
        arrays |= quantise(weights, x, np.random.default_rng(0))
    if "gpu" in graphs and GPU.fits(bundle.manifest):
        arrays |= half_precision(weights, x)
    if arrays.keys() - {"max_density"}:
        arrays[ROWS] = weights["W_enc"].T
    if not arrays:
        return {}
    save_tensors(path, arrays)
    return dict(read_header(path))


def active_activations(bundle: Bundle, rng: np.random.Generator, tokens: int) -> NDArray[np.float32]:
    """Made-up activations on which features are active: float32 [tokens, d_in]; row 0 is 0, and row 1 is b_pre.

    Every other row is a sum of eight directions of the decoder, or of the encoder where the SAE is a transcoder.
    """
    weights = bundle.weights()
    d_in, d_sae = weights["W_enc"].shape
    bias = weights["b_pre"]
    size = max(float(np.median(np.abs(weights["b_enc"]))), float(np.median(weights.get("threshold", 0))), 1.0)
    chosen = rng.integers(0, d_sae, (tokens, 8))
    amount = rng.gamma(2.0, size, chosen.shape)
    directions = weights["W_dec"] if bundle.manifest.architecture.d_out is None else weights["W_enc"].T
    x: NDArray[np.float64] = bias + np.einsum("nj,njd->nd", amount, np.asarray(directions)[chosen])
    x += rng.normal(0, 0.1 * size / np.sqrt(d_in), x.shape)
    x[0], x[1] = 0.0, bias
    return x.astype(np.float32)


def default_max_density(bundle: Bundle) -> NDArray[np.float64]:
    """The max_density of each feature with which a feature choice bundle was fitted: float64 [d_sae].

    Raises:
        ValueError: the bundle is not of feature choice.
    """
    allocation = bundle.manifest.allocation
    if allocation is None or allocation.quota is None:
        kind = f"of {allocation.kind} choice" if allocation else "of no known allocation"
        raise ValueError(f"only feature choice limits densities, this bundle is {kind}; encode it without them")
    return quota.max_densities(allocation.quota, allocation.k, bundle.manifest.architecture.d_sae)
