"""Shared pieces of the writers of other libraries' checkpoints."""

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.folder import Bundle


def refuse_normalised(bundle: Bundle, library: str) -> None:
    """Raise ValueError for an SAE that normalises each token, which the library does not."""
    if bundle.manifest.architecture.norm != "none":
        raise ValueError(
            f"{bundle.path} normalises every token ({bundle.manifest.architecture.norm}), which {library} does not; "
            "serve the bundle itself, or open it in SAELens"
        )


def encoder_bias(bundle: Bundle, *, pre_bias: bool) -> NDArray[np.float32]:
    """The b_enc [d_sae] that gives the same features if b_dec is subtracted from the input (`pre_bias`), or if not."""
    weights, architecture = bundle.weights(), bundle.manifest.architecture
    if pre_bias == architecture.pre_bias:
        return np.array(weights["b_enc"])
    moved = np.empty(architecture.d_sae)
    b_dec = weights["b_dec"].astype(np.float64)
    for begin in range(0, architecture.d_sae, 1024):  # in parts, since float64 takes twice the memory
        block = slice(begin, begin + 1024)
        moved[block] = b_dec @ weights["W_enc"][:, block].astype(np.float64)
    return (weights["b_enc"] + (moved if pre_bias else -moved)).astype(np.float32)
