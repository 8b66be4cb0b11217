"""Bundles of any architecture with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
from conftest import D_IN

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.exports.export import export

D_SAE = 150


def native(
    path: Path, *, allocation: Allocation | None = None, threshold: str | None = "random", **architecture: Any
) -> Path:
    """Write a bundle with decoder rows of length 1, and export it if it is calibrated.

    Args:
        path: the folder to make.
        allocation: the allocation of an SAE that selects by thresholds.
        threshold: "random", or None for a bundle without thresholds.
        architecture: fields of `Architecture`.

    Returns:
        The path.
    """
    form = Architecture(d_in=D_IN, d_sae=D_SAE, **architecture)
    rng = np.random.default_rng(4)
    weights = {name: rng.normal(0, 0.3, shape) for name, shape in bundle.weight_shapes(form).items()}
    weights["W_dec"] /= np.linalg.norm(weights["W_dec"], axis=1, keepdims=True)
    if form.k is not None:
        allocation = Allocation(kind="token", k=float(form.k))
    elif threshold is None:
        del weights["threshold"]
    else:
        weights["threshold"] = rng.uniform(1, 2, D_SAE)
    manifest = Manifest(architecture=form, allocation=allocation, slots=form.k or 120, model="tiny", hook="layer.1")
    bundle.write(path, {name: array.astype(np.float32) for name, array in weights.items()}, manifest)
    if threshold is not None:
        export(path, graphs=())
    return path
