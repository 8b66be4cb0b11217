"""Compare a bundle with what another library computes from the same checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime import load
from sae_runtime.checkpoints.checkpoint import Checkpoint
from sae_runtime.checkpoints.convert import convert
from sae_runtime.exports import export

os.environ["SPARSIFY_DISABLE_TRITON"] = (
    "1"  # sparsify chooses its kernel when it is imported; this one runs without a GPU
)

BATCHES = (1, 7, 300)
TOLERANCE = 1e-5  # relative to the row's largest value; float32 sums differ by less, and wrong formulas by more

Function = Callable[[Tensor], Tensor]


def randomise(module: Any, seed: int = 0) -> None:
    """Give a module random parameters: no zeros, unit rows or tied matrices hide an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def activations(n: int, d_in: int) -> Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(n)) * 1.5 + 0.2


def assert_same(checkpoint: Path, out: Path, d_in: int, encode: Function, reconstruct: Function) -> Checkpoint:
    """Convert, export and load a checkpoint, and compare the bundle with what its library computes.

    Args:
        encode: the library's features [n, d_sae] of activations.
        reconstruct: its reconstruction [n, d_out] of activations.
    """
    made = convert(checkpoint, out)
    export(out, graphs=())
    ours = load(out)
    for n in BATCHES:
        x = activations(n, d_in)
        with torch.no_grad():
            f, y = encode(x).numpy(), reconstruct(x).numpy()
        features = ours.encode(x.numpy())
        assert (f > 0).any(axis=1).mean() > 0.8, (
            "hardly any feature of the library is active, so this test shows nothing"
        )
        assert_near(features.to_dense(), f)
        assert_near(ours.decode(features, x.numpy()), y)
    return made


def assert_near(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    assert actual.shape == expected.shape
    top = np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1e-30)
    error = np.abs(actual - expected) / top
    assert error.max() <= TOLERANCE, f"max {error.max()}, mean {error.mean()}, at {np.argmax(error)}"


def pre_activations(made: Checkpoint, x: Tensor) -> NDArray[np.float64]:
    """Pre-activations of a checkpoint without a norm, in plain numpy; they need no threshold."""
    weights = {name: whole(made, name) for name in ("W_enc", "b_enc", "b_dec")}
    centred = x.numpy().astype(np.float64) - (weights["b_dec"] if made.architecture.pre_bias else 0)
    z: NDArray[np.float64] = np.maximum(centred @ weights["W_enc"] + weights["b_enc"], 0)
    return z


def whole(made: Checkpoint, name: str) -> NDArray[np.float32]:
    """A weight of a checkpoint as one array."""
    weight = made.weights[name]
    if isinstance(weight, np.ndarray):
        return weight
    out = np.full(weight.shape, np.nan, np.float32)
    for rows, part in weight.blocks():
        out[rows] = part
    return out
