"""The rules by which matches are kept: the served rule for each token alone, and the batch rule over many tokens."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.bundle import quota
from sae_runtime.train.step.allocation import allocate

Rule = Callable[[Tensor], Tensor]
"""Takes pre-activations z [n, d_sae] and returns a mask of the matches that are kept, bool [n, d_sae].

Rules are no functions within functions, so that they can be pickled.
"""


def served_rule(k: float, threshold: NDArray[np.float32] | None) -> Rule:
    """Each token for itself: its k largest, or with a threshold all that exceed it.

    >>> served_rule(1, None)(torch.tensor([[3.0, 2.0, 0.0]])).tolist()
    [[True, False, False]]
    """
    if threshold is None:
        return partial(allocate, per_token=int(k))
    return partial(_above, cut=torch.from_numpy(threshold))


def group_rule(k: int) -> Rule:
    """Each token for itself: the largest of each of k runs of neighbouring features.

    >>> group_rule(2)(torch.tensor([[3.0, 2.0, 0.0, 0.0]])).tolist()
    [[True, False, False, False]]
    """
    return partial(_largest_of_groups, k=k)


def batch_rule(k: float, max_density: NDArray[np.float64] | None) -> Rule:
    """Mutual choice (BatchTopK) over the tokens of one call; feature choice if the densities have limits [d_sae].

    >>> batch_rule(0.5, None)(torch.tensor([[3.0, 2.0], [1.0, 0.0]])).tolist()  # one match for two tokens
    [[True, False], [False, False]]
    """
    return partial(_of_batch, k=k, max_density=max_density)


def _above(z: Tensor, cut: Tensor) -> Tensor:
    return z > cut.to(z.device)


def _largest_of_groups(z: Tensor, k: int) -> Tensor:
    runs = z.reshape(len(z), k, -1)
    kept = torch.zeros_like(runs, dtype=torch.bool).scatter_(2, runs.argmax(dim=2, keepdim=True), True)
    return (kept & (runs > 0)).view_as(z)


def _of_batch(z: Tensor, k: float, max_density: NDArray[np.float64] | None) -> Tensor:
    limit = None
    if max_density is not None:
        limit = torch.from_numpy(quota.tokens_per_feature(max_density, len(z))).to(z.device)
    return allocate(z, total=quota.total_matches(k, len(z)), per_feature=limit)


def shuffled(n: int) -> NDArray[np.int64]:
    """The order in which n tokens come to a batch rule: a fixed order that mixes the texts, as training does.

    Neighbours in a text want the same features. Without the mixing, the limits of feature choice would refuse those
    features to some of the neighbours.

    >>> sorted(shuffled(3).tolist())
    [0, 1, 2]
    """
    return np.random.default_rng(0).permutation(n)


def even_batch(n: int, batch: int) -> int:
    """The size of a batch near `batch` that cuts n tokens into batches of one size, but for rounding.

    In a short last batch the limits of feature choice would round to 0.

    >>> even_batch(400, 130)  # 134, 134 and 132
    134
    """
    return math.ceil(n / max(round(n / batch), 1))
