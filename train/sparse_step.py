"""The loss of a batch and its gradients with a single dense product: every gradient lives on the matches.

The numbers are those of `plain_step`, which leaves the derivatives to autograd. Written out here, for
z = relu(c W_enc^T + b_enc) with c = x - b_dec, x_hat = f W_dec + b_dec, and g = d loss / d x_hat:

    d z[t, i]  = g[t] . W_dec[i]                          on the matches (t, i) only
    d W_dec[i] = sum_t f[t, i] g[t]
    d W_enc[i] = sum_t d z[t, i] c[t]
    d b_enc[i] = sum_t d z[t, i]
    d b_dec    = sum_t g[t] - sum_i (d b_enc[i]) W_enc[i]
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_runtime.train.model import SparseAutoencoder
from sae_runtime.train.plain_step import Limits, Losses, Observe
from sae_runtime.train.selection import select


@dataclass(frozen=True)
class _Matches:
    """Matches of a batch by token, and the same by feature: which, how many of each, where each begins."""

    values: Tensor  # by token
    token: Tensor
    feature: Tensor
    token_begin: Tensor  # [n + 1]
    by_feature: Tensor  # order that sorts the matches by feature
    feature_begin: Tensor  # [d_sae]
    counts: Tensor  # of each feature, [d_sae]


class SparseStep:
    """A step; keeps the room for the latents of a batch, whose fresh pages would cost a tenth of the product."""

    def __init__(self) -> None:
        self._z = torch.empty(0)

    @torch.no_grad()
    def __call__(
        self,
        model: SparseAutoencoder,
        x: Tensor,
        limits: Limits,
        observe: Observe,
        *,
        aux_weight: float,
        aux_k: int,
    ) -> Losses:
        """As `plain_step`: fills the gradients of the model's parameters and says what the losses are."""
        centred = x - model.b_dec
        if self._z.shape != (len(x), len(model.b_enc)):
            self._z = x.new_empty(len(x), len(model.b_enc))
        # The relu is left out: negative latents win no match.
        z = torch.mm(centred, model.W_enc.T, out=self._z).add_(model.b_enc)
        found = _matches(z, select(z, **limits))
        x_hat = embedding_bag(
            found.feature, model.W_dec, found.token_begin[:-1], mode="sum", per_sample_weights=found.values
        )
        residual = x - x_hat - model.b_dec
        variance = (x - x.mean(dim=0)).pow(2).sum().clamp_min(1e-30)
        g = residual * (-2 / variance)
        dz = _dots(g, model.W_dec, found)
        model.W_dec.grad = _sums_by_feature(g, found.values, found)
        model.W_enc.grad = _sums_by_feature(centred, dz, found)
        model.b_enc.grad = torch.zeros_like(model.b_enc).index_add_(0, found.feature, dz)
        # What of W_dec's gradient lies along its rows is known from dz: f[t, i] g[t] . W_dec[i].
        parallel = torch.zeros_like(model.b_enc).index_add_(0, found.feature, dz * found.values)
        among = observe(found.counts, len(x))
        aux = z.new_zeros(())
        if aux_weight > 0:
            aux = _add_aux(model, centred, z, residual, among, parallel, aux_weight, aux_k)
        model.W_dec.grad.addcmul_(model.W_dec, parallel[:, None], value=-1)
        model.b_dec.grad = g.sum(dim=0) - model.b_enc.grad @ model.W_enc
        return Losses(fvu=residual.pow(2).sum() / variance, aux=aux, matches=len(found.values))


def _matches(z: Tensor, at: Tensor) -> _Matches:
    n, d_sae = z.shape
    token, feature = at // d_sae, at % d_sae
    token_counts, counts = torch.bincount(token, minlength=n), torch.bincount(feature, minlength=d_sae)
    token_begin = torch.cat([token_counts.new_zeros(1), token_counts.cumsum(0)])
    return _Matches(
        values=z.view(-1)[at],
        token=token,
        feature=feature,
        token_begin=token_begin,
        by_feature=feature.argsort(stable=True),
        feature_begin=counts.cumsum(0) - counts,
        counts=counts,
    )


def _dots(rows: Tensor, columns: Tensor, found: _Matches) -> Tensor:
    """rows[token] . columns[feature] for every match, [matches]."""
    shape = (len(rows), len(columns))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        where = torch.sparse_csr_tensor(
            found.token_begin, found.feature, torch.ones_like(found.values), shape, check_invariants=False
        )
    dots: Tensor = torch.sparse.sampled_addmm(where, rows, columns.T, beta=0.0).values()
    return dots


def _sums_by_feature(rows: Tensor, weights: Tensor, found: _Matches) -> Tensor:
    """The sum over each feature's matches of weight times row[token], [d_sae, d_in]."""
    token, weights = found.token[found.by_feature], weights[found.by_feature]
    return embedding_bag(token, rows, found.feature_begin, mode="sum", per_sample_weights=weights)


def _add_aux(
    model: SparseAutoencoder,
    centred: Tensor,
    z: Tensor,
    residual: Tensor,
    among: Tensor,
    parallel: Tensor,
    weight: float,
    aux_k: int,
) -> Tensor:
    """Add the gradients of `losses.aux_k_loss`, which are dense in few features; give the loss."""
    chosen = among.nonzero().squeeze(1)
    if len(chosen) == 0:
        return z.new_zeros(())
    count = min(aux_k, len(chosen))
    latents, decoder = z[:, chosen].relu_(), model.W_dec[chosen]
    if count < len(chosen):
        values, at = latents.topk(count, dim=1, sorted=False)
        latents = torch.zeros_like(latents).scatter_(1, at, values)
    error = residual - latents @ decoder
    share = (count / aux_k) / (residual - residual.mean(dim=0)).pow(2).sum().clamp_min(1e-30)
    g = error * (-2 * weight * share)
    dz = (g @ decoder.T).mul_(latents > 0)
    gradients = latents.T @ g
    parallel.index_add_(0, chosen, (gradients * decoder).sum(dim=1))
    assert model.W_dec.grad is not None and model.W_enc.grad is not None and model.b_enc.grad is not None
    model.W_dec.grad.index_add_(0, chosen, gradients)
    model.W_enc.grad.index_add_(0, chosen, dz.T @ centred)
    model.b_enc.grad.index_add_(0, chosen, dz.sum(dim=0))
    return torch.nan_to_num(error.pow(2).sum() * share, 0.0)
