"""The result of a reader: the SAE of a checkpoint, described as a bundle describes it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.manifest import Allocation, Architecture, LeftOut, Manifest
from sae_runtime.checkpoints.stored import Double, Stored

_SLOTS = 256  # slots of a token if the checkpoint does not tell k

Weights = Mapping[str, NDArray[np.float32] | Stored]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An SAE as a checkpoint describes it.

    Attributes:
        architecture: what the SAE computes.
        weights: the tensors of `bundle.folder.weight_shapes`. Matrices are still in their file. The threshold is absent
            if the checkpoint has none yet.
        file: the file that holds the weights.
        source_format: the library's name of this kind of SAE.
        allocation: the batch rule of training; None if unknown.
        model: name of the host model; None if unknown.
        hook: hook of the activations that the SAE reads; None if unknown.
        hook_out: hook of the activations that a transcoder reconstructs; None if unknown.
        left_out: rows that training left out; None if none are known.
        provenance: further facts for the manifest, strings and numbers.
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
    left_out: LeftOut | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        """The manifest of the bundle.

        >>> zeros = np.zeros((24, 150))
        >>> w_enc = Stored(file=Path("sae.pt"), name="W_enc", shape=(24, 150), open=lambda: zeros)
        >>> assemble(
        ...     Path("sae.pt"), "batchtopk", w_enc=w_enc, b_enc=zeros[0], w_dec=w_enc.T, b_dec=zeros[:, 0], k=6
        ... ).manifest().slots
        24
        """
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
            left_out=self.left_out,
            provenance=provenance | ({"warnings": list(self.warnings)} if self.warnings else {}),
        )


def assemble(
    file: Path,
    source_format: str,
    *,
    w_enc: Stored,
    b_enc: Double,
    w_dec: Stored,
    b_dec: Double,
    threshold: Double | float | None = None,
    w_skip: Stored | None = None,
    selection: str = "threshold",
    k: float | None = None,
    pre_bias: bool = True,
    norm: str = "none",
    transcoder: bool = False,
    **about: Any,
) -> Checkpoint:
    """The checkpoint that these weights and settings make.

    Args:
        file: the file of the weights.
        source_format: the library's name of this kind of SAE.
        w_enc: [d_in, d_sae].
        b_enc: [d_sae].
        w_dec: [d_sae, d_out]; d_out is d_in unless the SAE is a transcoder.
        b_dec: [d_out].
        threshold: one number or [d_sae]; None if the checkpoint has none yet. A negative threshold becomes 0, since
            only positive features are kept.
        w_skip: [d_out, d_in]; None if there is no skip.
        selection: as in `Architecture`.
        k: matches a token; None if unknown. With selection "threshold", k comes from mutual choice (BatchTopK).
        pre_bias: as in `Architecture`.
        norm: as in `Architecture`.
        transcoder: whether the SAE reconstructs other activations than it reads.
        about: model, hook, hook_out, left_out, provenance and warnings of `Checkpoint`.

    Raises:
        ValueError: a vector is not finite in float32, or `Architecture` or `Allocation` refuses a setting.
    """
    (d_in, d_sae), by_threshold = w_enc.shape, selection == "threshold"
    vectors = {"b_enc": b_enc, "b_dec": b_dec}
    if threshold is not None:
        # np.maximum keeps NaN, which `_rounded` refuses.
        vectors["threshold"] = np.maximum(np.broadcast_to(np.asarray(threshold, np.float64), b_enc.shape), 0)
    weights: dict[str, NDArray[np.float32] | Stored] = {"W_enc": w_enc, "W_dec": w_dec}
    weights |= {name: _rounded(vector, name, file) for name, vector in vectors.items()}
    if w_skip is not None:
        weights["W_skip"] = w_skip
    return Checkpoint(
        architecture=Architecture(
            d_in=d_in,
            d_sae=d_sae,
            selection=selection,
            k=None if by_threshold or k is None else int(k),
            pre_bias=pre_bias,
            norm=norm,
            d_out=w_dec.shape[1] if transcoder else None,
            skip=w_skip is not None,
        ),
        weights=weights,
        file=file,
        source_format=source_format,
        allocation=None if k is None else Allocation(kind="mutual" if by_threshold else "token", k=float(k)),
        **about,
    )


def _rounded(vector: Double, name: str, file: Path) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded = vector.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError(f"{file}: {name} is beyond float32 when folded; it cannot be served")
    return rounded
