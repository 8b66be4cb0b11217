"""How well the matches that a rule keeps explain activations: by the rule of training, and as served."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.bundle import quota
from sae_runtime.train.step.allocation import allocate

Rule = Callable[[Tensor], Tensor]  # pre-activations z [n, d_sae] to the mask of what is kept


class Autoencoder(Protocol):
    """What a tally needs of a model: `SparseAutoencoder` and `TorchSAE` both have it."""

    @property
    def W_dec(self) -> Tensor:
        """The decoder, [d_sae, d_out]."""

    def pre_activations(self, x: Tensor) -> Tensor:
        """Pre-activations z >= 0 [n, d_sae] of activations [n, d_in]."""

    def reconstruction(self, sums: Tensor, x: Tensor) -> Tensor:
        """The reconstruction [n, d_out] of x from sums of decoder rows f W_dec [n, d_out]."""


def served_rule(k: float, threshold: NDArray[np.float32] | None) -> Rule:
    """Each token for itself: its top k where threshold is None, else what lies above the threshold.

    >>> served_rule(1, None)(torch.tensor([[3.0, 2.0, 0.0]])).tolist()
    [[True, False, False]]
    """
    if threshold is None:
        return lambda z: allocate(z, per_token=int(k))
    cut = torch.from_numpy(threshold)
    return lambda z: z > cut.to(z.device)


def group_rule(k: int) -> Rule:
    """Each token for itself: the largest of each of k runs of neighbouring features.

    >>> group_rule(2)(torch.tensor([[3.0, 2.0, 0.0, 0.0]])).tolist()
    [[True, False, False, False]]
    """

    def rule(z: Tensor) -> Tensor:
        runs = z.reshape(len(z), k, -1)
        kept = torch.zeros_like(runs, dtype=torch.bool).scatter_(2, runs.argmax(dim=2, keepdim=True), True)
        return (kept & (runs > 0)).view_as(z)

    return rule


def batch_rule(k: float, max_density: NDArray[np.float64] | None) -> Rule:
    """Mutual choice over the tokens that come together, or feature choice where densities have limits.

    >>> batch_rule(0.5, None)(torch.tensor([[3.0, 2.0], [1.0, 0.0]])).tolist()  # one match for two tokens
    [[True, False], [False, False]]
    """

    def rule(z: Tensor) -> Tensor:
        limit = None
        if max_density is not None:
            limit = torch.from_numpy(quota.tokens_per_feature(max_density, len(z))).to(z.device)
        return allocate(z, total=quota.total_matches(k, len(z)), per_feature=limit)

    return rule


def shuffled(n: int) -> NDArray[np.int64]:
    """The order in which n tokens come to a batch rule: a fixed one, in which texts are mixed as in training.

    Neighbours in a text want the same features, and the limits of feature choice refuse them to some.
    """
    return np.random.default_rng(0).permutation(n)


@torch.no_grad()
def reconstruct(model: Autoencoder, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The reconstruction [n, d_out] of x [n, d_in] from the matches that a rule keeps, and their mask [n, d_sae]."""
    z = model.pre_activations(x)
    kept = rule(z)
    token, feature = kept.nonzero(as_tuple=True)
    # Sums over the kept rows only: the dense product would cost as much as encoding.
    begin = torch.bincount(token, minlength=len(x)).cumsum(0)
    begin = torch.cat([begin.new_zeros(1), begin])
    sums = torch.nn.functional.embedding_bag(
        feature, model.W_dec, begin, mode="sum", per_sample_weights=z[kept], include_last_offset=True
    )
    return model.reconstruction(sums, x), kept


@dataclass(frozen=True)
class Tally:
    """By token: squared error, squared distance from the mean and active features, each [n]; by feature: matches.

    Errors and distances are empty where the activations that a transcoder reconstructs are not at hand.
    """

    error: NDArray[np.float64]
    spread: NDArray[np.float64]
    l0: NDArray[np.int64]
    matches: NDArray[np.int64]

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: the sum of the errors over that of the distances; NaN where not known."""
        if not len(self.error):
            return float("nan")
        return float(self.error.sum()) / max(float(self.spread.sum()), 1e-300)


def tally(
    model: Autoencoder, parts: Iterable[tuple[Tensor, Tensor | None]], rule: Rule, mean: Tensor | None = None
) -> Tally:
    """Count over parts of the activations, which a batch-level rule sees one after the other.

    Args:
        model: the fitted model.
        parts: activations [n, d_in], scaled as the model expects, and what it is to reconstruct, [n, d_out]: the same
            for an autoencoder, None for a transcoder whose target is not at hand.
        rule: what is kept.
        mean: of all targets, [d_out], from which their variance is taken; it is not needed where there are none.
    """
    counts = torch.zeros(len(model.W_dec), dtype=torch.int64, device=model.W_dec.device)
    error, spread, l0 = [np.empty(0)], [np.empty(0)], [np.empty(0, np.int64)]
    for x, target in parts:
        x_hat, kept = reconstruct(model, x, rule)
        if target is not None and mean is not None:
            error.append((target - x_hat).double().pow(2).sum(dim=1).cpu().numpy())
            spread.append((target - mean).double().pow(2).sum(dim=1).cpu().numpy())
        l0.append(kept.sum(dim=1).cpu().numpy())
        counts += kept.sum(dim=0)
    return Tally(np.concatenate(error), np.concatenate(spread), np.concatenate(l0), counts.cpu().numpy())


@torch.no_grad()
def tally_of(model: Autoencoder, x: Tensor, rule: Rule, batch: int) -> Tally:
    """The tally of held-out activations x [n, d_in], scaled as the model expects; a rule sees `batch` rows at a time.

    >>> from sae_runtime.train.step.model import SparseAutoencoder
    >>> x = torch.eye(4)
    >>> model = SparseAutoencoder(8, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    >>> tally_of(model, x, served_rule(1, None), batch=2).l0.tolist()
    [1, 1, 1, 1]
    """
    return tally(model, ((part, part) for part in torch.split(x, batch)), rule, x.mean(dim=0))
