"""What a reader of a foreign checkpoint gives: the SAE in the terms of a bundle."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import weight_shapes
from sae_runtime.bundle.manifest import Allocation, Architecture, Manifest
from sae_runtime.checkpoints.stored import Double, Stored

_SLOTS = 256  # of a token, for thresholds whose mean L0 is not known

Weights = Mapping[str, NDArray[np.float32] | Stored]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An SAE as a foreign checkpoint describes it.

    Attributes:
        encoder: what it computes.
        weights: those of `bundle.weight_shapes`; the threshold may be missing, and matrices may still be in their file.
        file: the file that holds the weights.
        source_format: what its library calls this kind of SAE.
        allocation: its batch rule, if that is known.
        model: name of the host model.
        hook: where in the model its activations are.
        hook_out: where in the model the activations are that a transcoder reconstructs.
        provenance: what else the checkpoint says of itself, strings and numbers.
        warnings: sentences for the user.
    """

    architecture: Architecture
    weights: Weights
    file: Path
    source_format: str
    allocation: Allocation | None = None
    model: str | None = None
    hook: str | None = None
    hook_out: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        """The manifest of its bundle."""
        architecture, allocation = self.architecture, self.allocation
        if architecture.k is not None:
            slots = architecture.k
        else:
            slots = min(architecture.d_sae, _SLOTS if allocation is None else math.ceil(4 * allocation.k))
        provenance = {"source_format": self.source_format, **self.provenance}
        return Manifest(
            architecture=architecture,
            allocation=allocation,
            slots=slots,
            model=self.model,
            hook=self.hook,
            hook_out=self.hook_out,
            provenance=provenance | ({"warnings": list(self.warnings)} if self.warnings else {}),
        )

    def check(self) -> None:
        """Raise ValueError if a weight is missing, unknown, or of a shape that does not fit the encoder."""
        shapes = weight_shapes(self.architecture)
        for name in {*shapes, *self.weights} - {"threshold"}:
            shape = tuple(self.weights[name].shape) if name in self.weights else None
            if shape != shapes.get(name):
                raise ValueError(
                    f"{self.file}: {name} has shape {shape}, expected {shapes.get(name)}; get a whole copy"
                )
        if "threshold" in self.weights and self.weights["threshold"].shape != shapes.get("threshold"):
            raise ValueError(
                f"{self.file}: threshold does not fit {self.architecture.d_sae} features; get a whole copy"
            )


def gather(
    file: Path,
    *,
    w_enc: Stored,
    b_enc: Double,
    w_dec: Stored,
    b_dec: Double,
    threshold: Double | float | None = None,
    w_skip: Stored | None = None,
) -> Weights:
    """The weights of a checkpoint, vectors rounded to float32.

    Args:
        file: names them in messages.
        w_enc: [d_in, d_sae].
        b_enc: [d_sae].
        w_dec: [d_sae, d_out].
        b_dec: [d_out].
        threshold: one number or [d_sae]; a negative one becomes 0, since only positive features are kept; or
            None if unknown.
        w_skip: [d_out, d_in] of a skip; None if there is none.

    Raises:
        ValueError: a vector is not finite in float32.
    """
    vectors = {"b_enc": b_enc, "b_dec": b_dec}
    if threshold is not None:
        # np.maximum keeps NaN, which is refused below.
        vectors["threshold"] = np.maximum(np.broadcast_to(np.asarray(threshold, np.float64), b_enc.shape), 0)
    weights: dict[str, NDArray[np.float32] | Stored] = {"W_enc": w_enc, "W_dec": w_dec}
    if w_skip is not None:
        weights["W_skip"] = w_skip
    for name, vector in vectors.items():
        with np.errstate(over="ignore"):
            rounded = vector.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise ValueError(f"{file}: {name} is beyond float32 when folded; it cannot be served")
        weights[name] = rounded
    return weights
