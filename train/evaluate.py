"""What a fitted SAE achieves on held-out activations, by the rule it was fitted with and as it is served."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime import quota
from sae_runtime.train.allocation import allocate
from sae_runtime.train.model import SparseAutoencoder

Rule = Callable[[Tensor], Tensor]  # latents z [n, d_sae] to the mask of what is kept


def served_rule(k: float, theta: NDArray[np.float32] | None) -> Rule:
    """Each token for itself: its top k where theta is None, else what lies above theta."""
    if theta is None:
        return lambda z: allocate(z, per_token=int(k))
    cut = torch.from_numpy(theta)
    return lambda z: z > cut.to(z.device)


def batch_rule(k: float, cap: NDArray[np.float64] | None) -> Rule:
    """Mutual choice over the tokens that come together, or feature choice where there are caps."""

    def rule(z: Tensor) -> Tensor:
        limit = None if cap is None else torch.from_numpy(quota.tokens_per_feature(cap, len(z))).to(z.device)
        return allocate(z, total=quota.budget(k, len(z)), per_feature=limit)

    return rule


@torch.no_grad()
def fvu_and_l0(model: SparseAutoencoder, x: Tensor, rule: Rule, batch: int) -> tuple[float, NDArray[np.int64]]:
    """Fraction of variance unexplained, and the number of active features of each token [n].

    Args:
        model: the fitted model.
        x: held-out activations, scaled as the model expects, [n, d_in].
        rule: what is kept; a batch-level rule sees `batch` tokens at a time.
        batch: tokens at a time.
    """
    error, total, l0 = 0.0, 0.0, []
    mean = x.mean(dim=0)
    for part, kept, z in _kept(model, x, rule, batch):
        error += float((part - model.decode(z * kept)).double().pow(2).sum())
        total += float((part - mean).double().pow(2).sum())
        l0.append(kept.sum(dim=1).cpu().numpy())
    return error / max(total, 1e-300), np.concatenate(l0)


@torch.no_grad()
def matches(model: SparseAutoencoder, x: Tensor, rule: Rule, batch: int) -> NDArray[np.int64]:
    """Number of tokens on which each feature fires: int64 [d_sae]."""
    counts = torch.zeros(len(model.b_enc), dtype=torch.int64, device=x.device)
    for _, kept, _ in _kept(model, x, rule, batch):
        counts += kept.sum(dim=0)
    return counts.cpu().numpy()


def _kept(model: SparseAutoencoder, x: Tensor, rule: Rule, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for part in torch.split(x, batch):
        z = model.latents(part)
        yield part, rule(z), z
