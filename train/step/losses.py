"""The losses of training. Every loss is a share of a variance, so the weights between them have no units."""

import torch
from torch import Tensor

from sae_runtime.train.world import World


def square(x: Tensor) -> Tensor:
    """sum x^2: a scalar, computed without a copy of x.

    >>> square(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    tensor(25.)
    """
    flat = x.flatten()
    return torch.dot(flat, flat)


def variance(x: Tensor, world: World | None = None) -> Tensor:
    """sum |x - mean(x)|^2 over the rows of all processes, which have equally many: a scalar above 0."""
    world = world or World()
    mean = world.sum_(x.sum(dim=0)) / (len(x) * world.size)
    return world.sum_(square(x - mean)).clamp_min(1e-30)


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of variance unexplained (1 - explained variance): sum |x - x_hat|^2 / sum |x - mean(x)|^2, a scalar.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> fvu(x, torch.tensor([[1.0], [2.0]]))
    tensor(0.5000)
    """
    return square(x - x_hat) / variance(x)


def aux_k_loss(residual: Tensor, z: Tensor, decoder: Tensor, among: Tensor, k_aux: int) -> Tensor:
    """The error of the given features alone in reconstructing the residual (Gao et al. 2024, arXiv:2406.04093).

    Each token's k_aux largest pre-activations among the given features reconstruct the residual, without bias. The loss
    is |residual - reconstruction|^2 / |residual - mean|^2. Where there are fewer than k_aux such features it is scaled
    down in proportion. For the dead features this is the aux_k_loss of the paper.

    Args:
        residual: x - x_hat, [n, d_in]; no gradient flows into it.
        z: pre-activations with gradient, [n, d_sae].
        decoder: W_dec, [d_sae, d_in].
        among: bool [d_sae], the features to train.
        k_aux: features that a token lends to the loss.
    """
    chosen = among.nonzero().squeeze(1)
    if len(chosen) == 0:
        return z.new_zeros(())
    count = min(k_aux, len(chosen))
    largest = z[:, chosen].topk(count, dim=1, sorted=False)
    sparse = torch.zeros(z.shape[0], len(chosen), dtype=z.dtype, device=z.device)
    sparse = sparse.scatter(1, largest.indices, largest.values)
    residual = residual.detach()
    error = square(residual - sparse @ decoder[chosen])
    return error / variance(residual) * (count / k_aux)


def under_used(density: Tensor, expected: Tensor, dead: Tensor, gamma: float) -> Tensor:
    """The features with density < gamma * expected, and the dead ones: bool [d_sae].

    aux_zipf_loss trains these features. The paper (abstract) names it as a generalisation of aux_k_loss to under-used
    features, and the formula is our own: aux_k_loss over the features with less than a share gamma of the density that
    a Zipf law gives their rank. The law is fitted to the densities of all features. With gamma = 0 only the dead
    features are left, which gives aux_k_loss.

    >>> density, expected = torch.tensor([0.5, 0.01, 0.0]), torch.tensor([0.4, 0.2, 0.1])
    >>> under_used(density, expected, density == 0, gamma=0.1).tolist()
    [False, True, True]

    Args:
        density: share of the tokens that each feature is active on, [d_sae].
        expected: the density that the law gives each feature's rank, [d_sae].
        dead: bool [d_sae].
        gamma: in [0, 1].
    """
    return (density < gamma * expected) | dead
