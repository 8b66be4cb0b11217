"""Bundles of every form that an encoder can have, with hand-made weights."""

from pathlib import Path
from typing import Any

import numpy as np
from conftest import D_IN

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.exports.export import export

D_SAE = 150
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no pre-bias": {"pre_bias": False},
    "skip": {"skip": True},
    "transcoder": {"d_out": D_IN, "pre_bias": False},
    "skip transcoder": {"d_out": D_IN, "pre_bias": False, "skip": True},
}


def native(
    path: Path,
    *,
    allocation: Allocation | None = None,
    threshold: float | str | None = "different",
    length: float = 1.0,
    **form: Any,
) -> Path:
    """The path of a bundle, exported if it can be.

    Args:
        path: where.
        allocation: of an SAE with thresholds.
        threshold: its common threshold, "different" ones, or None for none yet.
        length: of every row of W_dec.
        form: fields of `Encoder`.
    """
    architecture = Architecture(d_in=D_IN, d_sae=D_SAE, **form)
    rng = np.random.default_rng(4)
    weights = {name: rng.normal(0, 0.3, shape) for name, shape in bundle.weight_shapes(architecture).items()}
    weights["W_dec"] *= length / np.linalg.norm(weights["W_dec"], axis=1, keepdims=True)
    if architecture.selection == "threshold":
        weights["threshold"] = (
            rng.uniform(1, 2, D_SAE) if isinstance(threshold, str) else np.full(D_SAE, threshold or 0.0)
        )
        if threshold is None:
            del weights["threshold"]
    else:
        allocation = Allocation(kind="token", k=float(architecture.k or 0))
    manifest = Manifest(
        architecture=architecture, allocation=allocation, slots=architecture.k or 120, model="tiny", hook="layer.1"
    )
    bundle.write(path, {name: array.astype(np.float32) for name, array in weights.items()}, manifest)
    if threshold is not None:
        export(path, graphs=())
    return path
