"""The loss of a batch and its gradients by autograd: the reference for `SparseStep`, and the step without kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from sae_runtime.train.step.allocation import allocate
from sae_runtime.train.step.losses import aux_k_loss, fvu
from sae_runtime.train.step.model import SparseAutoencoder

Observe = Callable[[Tensor, int], Tensor]
"""Gets the number of matches of each feature, int64 [d_sae], and the number of tokens in a batch. Returns the features
that the auxiliary loss trains, bool [d_sae]."""


class Limits(TypedDict, total=False):
    """The limits of an allocation, as `allocate` takes them."""

    total: int
    per_token: int
    per_feature: Tensor


@dataclass(frozen=True)
class Losses:
    """The FVU, the auxiliary loss without its weight, and the number of matches of a batch."""

    fvu: Tensor
    aux: Tensor
    matches: int


Step = Callable[[SparseAutoencoder, Tensor, Limits, Observe, float, int], Losses]
"""Sets a model's gradients and returns the losses, as `plain_step` and `SparseStep` do."""


def plain_step(
    model: SparseAutoencoder, x: Tensor, limits: Limits, observe: Observe, aux_weight: float, aux_k: int
) -> Losses:
    """Set the gradients of fvu + aux_weight * aux_k_loss; the gradient of W_dec has no component along the rows.

    Args:
        model: the gradients of its parameters are replaced.
        x: a batch, scaled as the model expects, [n, d_in].
        limits: the limits on the matches of the batch.
        observe: called once with the counts of the matches.
        aux_weight: weight of the auxiliary loss; 0 leaves it out.
        aux_k: features of a token that the auxiliary loss uses.

    >>> model = SparseAutoencoder(8, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    >>> nothing = lambda counts, n: torch.zeros(8, dtype=torch.bool)
    >>> plain_step(model, torch.eye(4), {"total": 6}, nothing, 0.0, 2).matches
    6
    """
    model.zero_grad(set_to_none=True)
    z = model.pre_activations(x)
    kept = allocate(z.detach(), **limits)
    x_hat = model.decode(z * kept)
    loss, aux = fvu(x, x_hat), z.new_zeros(())
    among = observe(kept.sum(dim=0), len(x))
    if aux_weight > 0:
        aux = aux_k_loss(x - x_hat, z, model.W_dec, among, aux_k)
    (loss + aux_weight * aux).backward()  # type: ignore[no-untyped-call]
    assert model.W_dec.grad is not None
    with torch.no_grad():  # the component along a row would only change its norm
        model.W_dec.grad -= (model.W_dec.grad * model.W_dec).sum(dim=1, keepdim=True) * model.W_dec
    return Losses(fvu=loss.detach(), aux=aux.detach(), matches=int(kept.sum()))
