"""SAEs of any size for benchmarks of speed: random directions, with a threshold that asks for an L0.

They are not trained, so they explain little. What they cost, and how many features a token has, is as of trained ones.
"""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle import folder
from sae_runtime.bundle.manifest import Allocation
from sae_runtime.exports import export

_ROWS = 512  # activations at once


def made(out: Path, like: Path, x: NDArray[np.float32], *, d_sae: int, l0: float = 16.0) -> Path:
    """Write an exported bundle of mutual choice for the hook of another bundle.

    Args:
        out: the folder to make.
        like: a bundle of the same host and hook, by thresholds.
        x: activations [n, d_in], on which the threshold is set.
        d_sae: number of features.
        l0: mean number of features of a token.
    """
    manifest = folder.read(like).manifest
    rng = np.random.default_rng(d_sae)
    directions = rng.standard_normal((d_sae, x.shape[1])).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    mean = x.mean(axis=0)
    # A threshold at the l0 n largest of all pre-activations, and slots that all but one token in a thousand fit in.
    largest = []
    for begin in range(0, len(x), _ROWS):
        z = (x[begin : begin + _ROWS] - mean) @ directions.T
        largest.append(-np.partition(-z, min(d_sae, 40 * int(l0)) - 1, axis=1)[:, : min(d_sae, 40 * int(l0))])
    z = np.concatenate(largest)
    threshold = np.partition(z.reshape(-1), -int(l0 * len(x)))[-int(l0 * len(x))]
    slots = min(d_sae, 1 + int(np.quantile((z > threshold).sum(axis=1), 0.999)))
    weights = {
        "W_enc": np.ascontiguousarray(directions.T),
        "W_dec": directions,
        "b_enc": np.zeros(d_sae, np.float32),
        "b_dec": mean,
        "threshold": np.full(d_sae, threshold, np.float32),
    }
    told = dataclasses.replace(
        manifest,
        architecture=dataclasses.replace(manifest.architecture, d_sae=d_sae),
        allocation=Allocation(kind="mutual", k=l0),
        slots=slots,
        measured={},
        provenance={"made": "random directions for a benchmark"},
        left_out=None,
        measured_with_left_out={},
    )
    folder.write(out, weights, told)
    export(out)
    return out
