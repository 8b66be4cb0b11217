"""How well the matches that a rule keeps explain activations: by the rule of training, and as served."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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


def shuffled(n: int) -> NDArray[np.int64]:
    """The order in which n tokens come to a batch rule: a fixed one, in which, as in training, texts are mixed.

    Neighbours in a text want the same features, which the caps of feature choice refuse them together.
    """
    return np.random.default_rng(0).permutation(n)


@torch.no_grad()
def reconstruct(model: SparseAutoencoder, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """What the matches that a rule keeps make of x [n, d_in]: x_hat [n, d_in], and the mask of matches [n, d_sae]."""
    z = model.latents(x)
    kept = rule(z)
    token, feature = kept.nonzero(as_tuple=True)
    # Bags of the kept rows only: the dense product would cost as much as encoding.
    begin = torch.bincount(token, minlength=len(x)).cumsum(0)
    begin = torch.cat([begin.new_zeros(1), begin])
    bags = torch.nn.functional.embedding_bag(
        feature, model.W_dec, begin, mode="sum", per_sample_weights=z[kept], include_last_offset=True
    )
    return bags + model.b_dec, kept


@dataclass(frozen=True)
class Tally:
    """By token: squared error, squared distance from the mean and active features, each [n]; by feature: matches."""

    error: NDArray[np.float64]
    spread: NDArray[np.float64]
    l0: NDArray[np.int64]
    matches: NDArray[np.int64]

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: the sum of the errors over that of the distances."""
        return float(self.error.sum()) / max(float(self.spread.sum()), 1e-300)


def tally(model: SparseAutoencoder, parts: Iterable[Tensor], rule: Rule, mean: Tensor) -> Tally:
    """Count over parts of the activations, each [n, d_in], which a batch-level rule sees one after the other.

    Args:
        model: the fitted model.
        parts: activations, scaled as the model expects.
        rule: what is kept.
        mean: of all activations, [d_in], from which their variance is taken.
    """
    counts = torch.zeros(len(model.b_enc), dtype=torch.int64, device=model.b_enc.device)
    error, spread, l0 = [], [], []
    for x in parts:
        x_hat, kept = reconstruct(model, x, rule)
        error.append((x - x_hat).double().pow(2).sum(dim=1).cpu().numpy())
        spread.append((x - mean).double().pow(2).sum(dim=1).cpu().numpy())
        l0.append(kept.sum(dim=1).cpu().numpy())
        counts += kept.sum(dim=0)
    return Tally(np.concatenate(error), np.concatenate(spread), np.concatenate(l0), counts.cpu().numpy())


@torch.no_grad()
def fvu_and_l0(model: SparseAutoencoder, x: Tensor, rule: Rule, batch: int) -> tuple[float, NDArray[np.int64]]:
    """Fraction of variance unexplained, and the number of active features of each token [n].

    Args:
        model: the fitted model.
        x: held-out activations, scaled as the model expects, [n, d_in].
        rule: what is kept; a batch-level rule sees `batch` tokens at a time.
        batch: tokens at a time.
    """
    counted = tally(model, torch.split(x, batch), rule, x.mean(dim=0))
    return counted.fvu, counted.l0


@torch.no_grad()
def matches(model: SparseAutoencoder, x: Tensor, rule: Rule, batch: int) -> NDArray[np.int64]:
    """Number of tokens on which each feature fires: int64 [d_sae]."""
    return tally(model, torch.split(x, batch), rule, x.mean(dim=0)).matches
