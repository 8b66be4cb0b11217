"""The losses of training. Every loss is a share of a variance, so the weights between them have no units."""

import torch
from torch import Tensor

from sae_runtime.train.world import ALONE, World

_LEAST_VARIANCE = 1e-6  # of an element of scaled rows: a batch of equal rows, or a residual of 0, has less


def square(x: Tensor) -> Tensor:
    """sum x^2, a scalar, computed without a copy of x.

    >>> square(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    tensor(25.)
    """
    flat = x.flatten()
    return torch.dot(flat, flat)


def variance(x: Tensor, world: World = ALONE) -> Tensor:
    """sum |x - mean(x)|^2 over the rows of all processes, which have the same number of rows: a scalar above 0.

    It is at least 1e-6 an element. So a loss stays finite where all rows of a batch are equal, or where the residual is
    0, as it can be with one input number. Scaled rows have a variance of about 1 an element.

    >>> variance(torch.tensor([[1.0], [3.0]]))
    tensor(2.)
    """
    mean = world.sum_(x.sum(dim=0)) / (len(x) * world.size)
    return world.sum_(square(x - mean)).clamp_min(_LEAST_VARIANCE * x.numel() * world.size)


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of variance unexplained (1 - explained variance): sum |x - x_hat|^2 / sum |x - mean(x)|^2, a scalar.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> fvu(x, torch.tensor([[1.0], [2.0]]))
    tensor(0.5000)
    """
    return square(x - x_hat) / variance(x)


def aux_k_loss(residual: Tensor, z: Tensor, decoder: Tensor, among: Tensor, k_aux: int) -> Tensor:
    """The share of the residual that the given features alone leave unexplained: a scalar.

    Each token's k_aux largest pre-activations among the given features reconstruct the residual, without bias. The loss
    is |residual - reconstruction|^2 / |residual - mean|^2. If fewer than k_aux features are given, it is scaled down in
    proportion. Over the dead features it is the loss AuxK of Gao et al. 2024 (arXiv:2406.04093).

    >>> residual, decoder = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    >>> z = torch.tensor([[1.0, 9.0], [0.0, 9.0]])
    >>> aux_k_loss(residual, z, decoder, torch.tensor([True, False]), k_aux=1)
    tensor(0.5000)

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
    """The features with density < gamma * expected, and the dead features: bool [d_sae].

    `aux_k_loss` over these features is the paper's aux_zipf_loss, which its abstract (arXiv:2411.02124) names as a
    generalisation of AuxK to under-used features. The formula is our own. A feature is under-used if its density is
    below a share gamma of the density that a Zipf law gives its rank. The law is fitted to the densities of all
    features. With gamma = 0 only the dead features are left, which gives AuxK.

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
