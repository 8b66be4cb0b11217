"""What a precision costs: its features against those of float64, on activations like those the SAE was fitted on."""

import numpy as np
from numpy.typing import NDArray

from sae_runtime.exports import witness
from sae_runtime.manifest import Encoder, Price


def price(
    encoder: Encoder,
    weights: witness.Weights,
    x: NDArray[np.float32],
    matches: witness.Matches,
    slots: tuple[NDArray[np.int64], NDArray[np.float32]],
    certain: NDArray[np.bool_] | None = None,
) -> Price:
    """The price of a precision.

    Args:
        encoder: of the bundle.
        weights: of the bundle.
        x: activations [n, d_in].
        matches: what the witness keeps of them.
        slots: indices and values [n, width] that a graph gave.
        certain: whether a token's slots hold [n]; others count as they would be encoded in full, without error.
    """
    f = np.where(matches.kept, matches.z, 0)
    got = np.zeros_like(f)
    np.add.at(got, (np.arange(len(got))[:, None], slots[0]), np.asarray(slots[1], np.float64))
    if certain is not None:
        got[~certain] = f[~certain]
    both, either = ((f > 0) & (got > 0)).sum(axis=1), ((f > 0) | (got > 0)).sum(axis=1)
    largest = f.max(axis=1, initial=0)
    some = largest > 0
    error = np.abs(got - f).max(axis=1, initial=0)[some] / largest[some]
    fvu, change = None, None
    if encoder.d_out is None:  # what a transcoder should have given is not known
        fvu, exact = (_fvu(encoder, weights, x, each) for each in (got, f))
        change = fvu / exact - 1 if exact > 0 else 0.0
    return Price(
        tokens=len(x),
        jaccard=float(np.mean(np.where(either > 0, both / np.maximum(either, 1), 1))),
        value_error=float(error.mean()) if some.any() else 0.0,
        fvu=fvu,
        fvu_change=change,
        redone=None if certain is None else float(1 - certain.mean()),
    )


def _fvu(encoder: Encoder, weights: witness.Weights, x: NDArray[np.float32], f: NDArray[np.float64]) -> float:
    """Fraction of the variance of x that f leaves unexplained."""
    x_hat = f @ np.asarray(weights["W_dec"], np.float64) + weights["b_dec"]
    error = x - witness.completed(weights, x_hat, x, encoder.norm)
    variance = float(np.square(x - x.mean(axis=0, dtype=np.float64)).sum())
    return float(np.square(error).sum()) / variance if variance > 0 else 0.0
