"""How well the matches that a rule keeps explain activations, and how many each token and each feature has."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_runtime.core.arrays import EQUAL
from sae_runtime.train.measure.rules import Rule
from sae_runtime.train.measure.torch_sae import TorchSAE
from sae_runtime.train.step.model import SparseAutoencoder

Autoencoder = SparseAutoencoder | TorchSAE


@torch.no_grad()
def reconstruct(model: Autoencoder, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Keep matches by a rule and reconstruct the activations from them.

    Returns:
        The reconstruction [n, d_out] of x [n, d_in], and the mask of the matches, bool [n, d_sae].

    >>> from sae_runtime.train.measure.rules import served_rule
    >>> model = SparseAutoencoder(8, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    >>> x_hat, kept = reconstruct(model, torch.eye(4), served_rule(2, None))
    >>> x_hat.shape, kept.sum(dim=1).tolist()
    (torch.Size([4, 4]), [2, 2, 2, 2])
    """
    x_hat, kept, _, _ = _reconstructed(model, x, rule)
    return x_hat, kept


def _reconstructed(model: Autoencoder, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reconstruct`, and the feature and the value of each match, [m]."""
    z = model.pre_activations(x)
    kept = rule(z)
    token, feature = kept.nonzero(as_tuple=True)
    values = z[kept]
    # Sums over the decoder rows of the matches only: a dense product would take as long as encoding.
    begin = torch.bincount(token, minlength=len(x)).cumsum(0)
    begin = torch.cat([begin.new_zeros(1), begin])
    sums = embedding_bag(feature, model.W_dec, begin, mode="sum", per_sample_weights=values, include_last_offset=True)
    return model.reconstruction(sums, x), kept, feature, values


@dataclass(frozen=True)
class Tally:
    """Errors and counts of n tokens.

    Attributes:
        error: squared error of each token, [n]; empty if the activations that a transcoder reconstructs are not known.
        spread: squared distance of each token from the mean, [n]; empty as `error` is.
        l0: active features of each token, [n].
        matches: tokens on which each feature is active, [d_sae].
        largest: largest activation of each feature, 0 where it has none, [d_sae].
    """

    error: NDArray[np.float64]
    spread: NDArray[np.float64]
    l0: NDArray[np.int64]
    matches: NDArray[np.int64]
    largest: NDArray[np.float32]

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: the sum of the errors over the sum of the distances; NaN if not known."""
        if not len(self.error):
            return float("nan")
        return float(self.error.sum()) / max(float(self.spread.sum()), 1e-300)


@torch.no_grad()
def tally(
    model: Autoencoder, parts: Iterable[tuple[Tensor, Tensor | None]], rule: Rule, mean: Tensor | None = None
) -> Tally:
    """Count over parts of the activations. A batch rule sees one part at a time.

    Args:
        model: the fitted model.
        parts: activations [n, d_in], scaled as the model expects, and the targets that it reconstructs, [n, d_out]. For
            an autoencoder both are the same. For a transcoder without known targets the second is None.
        rule: keeps the matches.
        mean: of all targets, [d_out], for their variance; None if there are no targets.
    """
    counts = torch.zeros(len(model.W_dec), dtype=torch.int64, device=model.W_dec.device)
    largest = torch.zeros(len(counts), device=counts.device)
    error, spread, l0 = [np.empty(0)], [np.empty(0)], [np.empty(0, np.int64)]
    for x, target in parts:
        x_hat, kept, feature, values = _reconstructed(model, x, rule)
        if target is not None and mean is not None:
            error.append((target - x_hat).double().pow(2).sum(dim=1).cpu().numpy())
            spread.append((target - mean).double().pow(2).sum(dim=1).cpu().numpy())
        l0.append(kept.sum(dim=1).cpu().numpy())
        counts += kept.sum(dim=0)
        largest.scatter_reduce_(0, feature, values.to(largest.dtype), "amax")
    of_features = counts.cpu().numpy(), largest.cpu().numpy()
    return Tally(np.concatenate(error), np.concatenate(spread), np.concatenate(l0), *of_features)


def has_no_variance(counted: Tally, mean: Tensor) -> bool:
    """Whether all rows with this mean equal it but for rounding, so that there is nothing to explain.

    >>> spread = np.full(10, 1e-16)
    >>> has_no_variance(Tally(spread, spread, np.ones(10, int), np.ones(8, int), np.ones(8)), torch.ones(4))
    True
    """
    return bool(counted.spread.mean() <= EQUAL**2 * float(mean.double().pow(2).sum()))


@torch.no_grad()
def tally_of(model: Autoencoder, x: Tensor, rule: Rule, batch: int) -> Tally:
    """The tally of activations x [n, d_in], scaled as the model expects. A batch rule sees `batch` rows at a time.

    >>> from sae_runtime.train.measure.rules import served_rule
    >>> model = SparseAutoencoder(8, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    >>> tally_of(model, torch.eye(4), served_rule(1, None), batch=2).l0.tolist()
    [1, 1, 1, 1]
    """
    return tally(model, ((part, part) for part in torch.split(x, batch)), rule, x.mean(dim=0))
