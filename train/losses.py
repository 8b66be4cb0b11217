"""What training minimises. All losses are shares of a variance, so their weights need no units."""

import torch
from torch import Tensor

from sae_runtime.train.world import World


def square(x: Tensor) -> Tensor:
    """sum x^2: a scalar, without a copy of x."""
    flat = x.flatten()
    return torch.dot(flat, flat)


def variance(x: Tensor, world: World | None = None) -> Tensor:
    """sum |x - mean(x)|^2 over the rows of all processes, each with as many: a scalar above 0."""
    world = world or World()
    mean = world.sum_(x.sum(dim=0)) / (len(x) * world.size)
    return world.sum_(square(x - mean)).clamp_min(1e-30)


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2, a scalar."""
    return square(x - x_hat) / variance(x)


def aux_k_loss(residual: Tensor, z: Tensor, decoder: Tensor, among: Tensor, k_aux: int) -> Tensor:
    """How badly features that deserve more use explain what the others left (Gao et al. 2024, arXiv:2406.04093).

    Each token's k_aux largest latents among the given features reconstruct the residual, without bias; the loss is
    |residual - reconstruction|^2 over |residual - mean|^2, scaled down where there are fewer than k_aux such features.
    With `among` the dead features this is aux_k_loss.

    Args:
        residual: x - x_hat, [n, d_in]; no gradient flows into it.
        z: latents with gradient, [n, d_sae].
        decoder: W_dec, [d_sae, d_in].
        among: bool [d_sae], the features to train.
        k_aux: features a token.
    """
    chosen = among.nonzero().squeeze(1)
    if len(chosen) == 0:
        return z.new_zeros(())
    count = min(k_aux, len(chosen))
    values, at = z[:, chosen].topk(count, dim=1, sorted=False)
    sparse = torch.zeros(z.shape[0], len(chosen), dtype=z.dtype, device=z.device).scatter(1, at, values)
    residual = residual.detach()
    error = square(residual - sparse @ decoder[chosen])
    return error / variance(residual) * (count / k_aux)


def under_used(density: Tensor, expected: Tensor, dead: Tensor, gamma: float) -> Tensor:
    """Features that aux_zipf_loss trains: bool [d_sae], those with density < gamma * expected, and the dead ones.

    The paper (abstract) names aux_zipf_loss as a generalisation of aux_k_loss to under-used features; this formula
    for it is our own: aux_k_loss over the features that fall below a share gamma of what the Zipf law fitted to
    all densities expects at their rank. gamma = 0 leaves the dead features, which is aux_k_loss.

    Args:
        density: share of tokens on which each feature fires, [d_sae].
        expected: what the law gives a feature of its rank, [d_sae].
        dead: bool [d_sae], features silent for longer than the dead limit.
        gamma: in [0, 1].
    """
    return (density < gamma * expected) | dead
