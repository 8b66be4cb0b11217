"""The SAE in a few lines of torch, which share no code with the graphs or with the numpy witness."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Weights = Mapping[str, NDArray[np.float32]]
Sparse = tuple[Tensor, list[Tensor]]  # f [n, d_sae], and the cuts (broadcastable to f) that decide which are active


def double(array: ArrayLike) -> Tensor:
    return torch.from_numpy(np.array(array, np.float64))


def whole(array: ArrayLike) -> Tensor:
    return torch.from_numpy(np.array(array, np.int64))


def pre_activations(weights: Weights, x: ArrayLike) -> Tensor:
    w = {name: double(array) for name, array in weights.items()}
    return torch.relu(torch.addmm(w["b_enc"], double(x) - w["b_dec"], w["W_enc"]))


def token(z: Tensor, k: int) -> Sparse:
    top = torch.topk(z, k, dim=1)
    f = torch.zeros_like(z).scatter(1, top.indices, top.values)
    return f, [midway(z, f, dim=1)]


def threshold(z: Tensor, threshold: ArrayLike) -> Sparse:
    return z * (z > double(threshold)), [double(threshold)]


def mutual(z: Tensor, k: float, valid: ArrayLike | None = None) -> Sparse:
    valid = torch.ones(len(z), dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    flat = torch.nan_to_num(z * valid[:, None]).flatten()
    total = min(round(k * int(valid.sum())), int((flat > 0).sum()))  # like the graph, Python rounds a half to even
    top = torch.topk(flat, total)
    f = torch.zeros_like(flat).scatter(0, top.indices, top.values)
    return f.view_as(z), [midway(flat, f, dim=0)]


def feature(z: Tensor, k: float, max_density: ArrayLike, valid: ArrayLike | None = None) -> Sparse:
    valid = torch.ones(len(z), dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    z = z * valid[:, None]
    limit = (double(max_density) * int(valid.sum())).round()
    order = z.argsort(dim=0, descending=True, stable=True)
    rank = order.argsort(dim=0)  # of every token within its column
    columns = z * (rank < limit)
    f, cuts = mutual(columns, k, valid)
    return f, [midway(z, columns, dim=0), *cuts]


def midway(z: Tensor, f: Tensor, dim: int) -> Tensor:
    """The middle between the kept and the other numbers; float32 may decide otherwise only near it."""
    if not z.shape[dim]:
        return torch.zeros(())
    return (f.masked_fill(f == 0, torch.inf).amin(dim, keepdim=True) + (z - f).amax(dim, keepdim=True)) / 2


def decode(weights: Weights, f: Tensor) -> Tensor:
    return f @ double(weights["W_dec"]) + double(weights["b_dec"])


def steer(weights: Weights, x: ArrayLike, f: Tensor, edited: Tensor) -> Tensor:
    """Swap the reconstruction from f for the one from the edited features, and keep the error of the first."""
    reconstruction = decode(weights, f)
    error = double(x) - reconstruction
    return decode(weights, edited) + error


def dense(outputs: Sequence[NDArray[Any]], d_sae: int) -> NDArray[np.float64]:
    """The indices and values of a graph as dense features [n, d_sae], after a check of their layout."""
    indices, values = outputs
    assert indices.dtype == np.int64 and values.dtype == np.float32 and indices.shape == values.shape
    assert (np.diff(values, axis=1) <= 0).all(), "rows must fall"
    assert (values >= 0).all() and np.isfinite(values).all()
    out = np.zeros((len(values), d_sae))
    row, slot = np.nonzero(values)
    np.add.at(out, (row, indices[row, slot]), values[row, slot])
    assert np.count_nonzero(out) == len(row), "a feature twice in one row"
    return out


def assert_same_features(actual: NDArray[np.floating[Any]], expected: Sparse) -> None:
    """Assert equality up to float32: values to 1e-5 of the row's largest; near a cut, one side may keep a feature."""
    f, cuts = expected[0].numpy(), [cut.numpy() for cut in expected[1]]
    assert actual.shape == f.shape
    top = np.maximum(np.maximum(actual, f).max(axis=1, initial=0), 1e-30)[:, None]
    one_side = (actual > 0) != (f > 0)
    at_cut = np.maximum(actual, f) <= 1e-6 * top
    for cut in cuts:
        at_cut |= np.abs(np.maximum(actual, f) - cut) <= 1e-6 * top
    error = np.where(one_side, 0, np.abs(actual - f) / top)
    assert not (one_side & ~at_cut).any(), f"matches of one side only at {np.argwhere(one_side & ~at_cut)[:3].tolist()}"
    assert error.max(initial=0) <= 1e-5, f"max {error.max()}, mean {error.mean()}, at {np.argmax(error)}"


def assert_close(actual: NDArray[np.float32], expected: Tensor) -> None:
    """Assert equality up to float32: 1e-5 of the row's largest value."""
    assert actual.shape == tuple(expected.shape)
    top = np.maximum(np.abs(expected.numpy()).max(axis=-1, initial=0), 1e-30)[..., None]
    error = np.abs(actual - expected.numpy()) / top
    assert error.max(initial=0) <= 1e-5, f"max {error.max()}, mean {error.mean()}, at {np.argmax(error)}"
