"""The loss of a batch and its gradients with a single dense product, since only the matches have gradients.

The results equal those of `plain_step`, which uses autograd. With c = x - b_dec, z = relu(c W_enc^T + b_enc),
x_hat = f W_dec + b_dec and g = d loss / d x_hat, the derivatives are:

    d z[t, i]  = g[t] . W_dec[i]                          for the matches (t, i) only
    d W_dec[i] = sum_t f[t, i] g[t]
    d W_enc[i] = sum_t d z[t, i] c[t]
    d b_enc[i] = sum_t d z[t, i]
    d b_dec    = sum_t g[t] - sum_i (d b_enc[i]) W_enc[i]
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sae_runtime.train.step import cpu_kernels
from sae_runtime.train.step.losses import square, variance
from sae_runtime.train.step.matches import Matches
from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.plain_step import Limits, Losses, Observe
from sae_runtime.train.step.selection import select
from sae_runtime.train.world import ALONE, World


class Kernels(Protocol):
    """The functions that `cpu_kernels` and `triton_kernels` both have."""

    def reconstruct(self, matches: Matches, rows: Tensor) -> Tensor:
        """As `cpu_kernels.reconstruct`."""

    def dots(self, rows: Tensor, columns: Tensor, matches: Matches) -> Tensor:
        """As `cpu_kernels.dots`."""

    def sums_by_feature(self, rows: Tensor, weights: Tensor, matches: Matches) -> Tensor:
        """As `cpu_kernels.sums_by_feature`."""


@dataclass(kw_only=True)
class SparseStep:
    """A step that has the results of `plain_step` and computes gradients at the matches only.

    It reuses one array of pre-activations. A new array for each batch would cost a tenth of the product's time.

    Attributes:
        product_dtype: the type of the dense product. With bfloat16 the product only nominates candidates; the matches,
            their values and every gradient are float32.
        kernels: `cpu_kernels` or `triton_kernels`.
        world: the processes that share the batch, each with the same number of tokens.

    >>> model = SparseAutoencoder(8, torch.zeros(4), generator=torch.Generator().manual_seed(0))
    >>> nothing = lambda counts, n: torch.zeros(8, dtype=torch.bool)
    >>> SparseStep()(model, torch.eye(4), {"total": 6}, nothing, 0.0, 2).matches
    6
    """

    product_dtype: torch.dtype = torch.float32
    kernels: Kernels = cpu_kernels
    world: World = ALONE
    _z: Tensor = field(default_factory=lambda: torch.empty(0), init=False)

    @torch.no_grad()
    def __call__(
        self, model: SparseAutoencoder, x: Tensor, limits: Limits, observe: Observe, aux_weight: float, aux_k: int
    ) -> Losses:
        """As `plain_step`: set the gradients of the model's parameters, and return the losses.

        x is this process's part of the batch. Limits, counts and losses are those of the whole batch.
        """
        kernels, world = self.kernels, self.world
        centred = x - model.b_dec
        matches = self._matches(model, centred, limits)
        x_hat = kernels.reconstruct(matches, model.W_dec)
        residual = centred - x_hat
        total = variance(x, world)
        g = residual * (-2 / total)
        dz = kernels.dots(g, model.W_dec, matches)
        model.W_dec.grad = kernels.sums_by_feature(g, matches.values, matches)
        model.W_enc.grad = kernels.sums_by_feature(centred, dz, matches)
        ones = x.new_ones(len(x), 1)  # not index_add_: on CUDA it adds in no fixed order, and the kernels do
        model.b_enc.grad = kernels.sums_by_feature(ones, dz, matches)[:, 0]
        # The gradient of W_dec[i] has the component sum_t f[t, i] g[t] . W_dec[i] along W_dec[i]; dz holds these dot
        # products. The component is removed below, since it would only change the norm of the row.
        parallel = kernels.sums_by_feature(ones, dz * matches.values, matches)[:, 0]
        among = observe(world.sum_(matches.counts.clone()), len(x) * world.size)
        aux = x.new_zeros(())
        if aux_weight > 0:
            aux = self._add_aux(model, centred, residual, among, parallel, aux_weight, aux_k)
        model.W_dec.grad.addcmul_(model.W_dec, parallel[:, None], value=-1)
        model.b_dec.grad = g.sum(dim=0) - model.b_enc.grad @ model.W_enc
        for parameter in model.parameters():
            assert parameter.grad is not None
            world.sum_(parameter.grad)
        fvu = world.sum_(square(residual)) / total
        return Losses(fvu=fvu, aux=world.sum_(aux), matches=world.count(len(matches.values)))

    def _matches(self, model: SparseAutoencoder, centred: Tensor, limits: Limits) -> Matches:
        shape = (len(centred), len(model.b_enc))
        if self._z.shape != shape or self._z.device != centred.device:
            self._z = torch.empty(shape, dtype=self.product_dtype, device=centred.device)
        # There is no relu here, since `select` never matches a negative pre-activation.
        rows, columns = centred.to(self.product_dtype), model.W_enc.to(self.product_dtype)
        z = torch.addmm(model.b_enc.to(self.product_dtype), rows, columns.T, out=self._z)

        def exact(positions: Tensor) -> Tensor:
            nominated = Matches(positions, z.view(-1)[positions], *shape)
            return self.kernels.dots(centred, model.W_enc, nominated) + model.b_enc[nominated.feature]

        is_rough = self.product_dtype != torch.float32
        positions, values = select(z, **limits, exact=exact if is_rough else None, world=self.world)
        return Matches(positions, values, *shape)

    def _add_aux(
        self,
        model: SparseAutoencoder,
        centred: Tensor,
        residual: Tensor,
        among: Tensor,
        parallel: Tensor,
        weight: float,
        aux_k: int,
    ) -> Tensor:
        """Add the gradients of `losses.aux_k_loss`, dense over its few features; return this process's part of it."""
        chosen = among.nonzero().squeeze(1)
        if len(chosen) == 0:
            return centred.new_zeros(())
        count = min(aux_k, len(chosen))
        decoder = model.W_dec[chosen]
        z = torch.addmm(model.b_enc[chosen], centred, model.W_enc[chosen].T).relu_()
        if count < len(chosen):
            largest = z.topk(count, dim=1, sorted=False)
            z = torch.zeros_like(z).scatter_(1, largest.indices, largest.values)
        error = residual - z @ decoder
        share = (count / aux_k) / variance(residual, self.world)
        g = error * (-2 * weight * share)
        dz = (g @ decoder.T).mul_(z > 0)
        gradients = z.T @ g
        parallel.index_add_(0, chosen, (gradients * decoder).sum(dim=1))
        assert model.W_dec.grad is not None and model.W_enc.grad is not None and model.b_enc.grad is not None
        model.W_dec.grad.index_add_(0, chosen, gradients)
        model.W_enc.grad.index_add_(0, chosen, dz.T @ centred)
        model.b_enc.grad.index_add_(0, chosen, dz.sum(dim=0))
        return square(error) * share
