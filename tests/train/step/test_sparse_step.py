import pytest
import torch
from torch import Tensor

from sae_runtime.train.step.model import SparseAutoencoder
from sae_runtime.train.step.plain_step import Limits, Losses, Step, plain_step
from sae_runtime.train.step.sparse_step import SparseStep

N, D_IN, D_SAE = 48, 20, 320


def model_of(generator: torch.Generator) -> SparseAutoencoder:
    model = SparseAutoencoder(D_SAE, torch.randn(D_IN, generator=generator), generator=generator)
    with torch.no_grad():  # off the start, where encoder and decoder are one
        model.W_enc.add_(torch.randn(D_SAE, D_IN, generator=generator), alpha=0.05)
        model.b_enc.add_(torch.randn(D_SAE, generator=generator), alpha=0.1)
    return model


def run(step: Step, limits: Limits, share: float, weight: float, aux_k: int) -> tuple[Losses, list[Tensor], Tensor]:
    """Losses, gradients, and the counts that were observed, from the same model and batch every time."""
    generator = torch.Generator().manual_seed(0)
    model, x = model_of(generator), torch.randn(N, D_IN, generator=generator)
    among = torch.rand(D_SAE, generator=generator) < share
    seen: list[Tensor] = []

    def observe(counts: Tensor, n: int) -> Tensor:
        assert n == N
        seen.append(counts)
        return among

    losses = step(model, x, limits, observe, weight, aux_k)
    (counts,) = seen
    return losses, [p.grad for p in model.parameters() if p.grad is not None], counts


CAPS = torch.arange(D_SAE) % 5


@pytest.mark.parametrize(
    "limits", [{"per_token": 6}, {"total": 6 * N}, {"total": 6 * N, "per_feature": CAPS}, {"total": 0}]
)
@pytest.mark.parametrize(("share", "weight", "aux_k"), [(0.1, 0.0, 8), (0.1, 0.5, 8), (0.1, 0.5, 64), (0.0, 0.5, 8)])
@pytest.mark.parametrize("product_dtype", [torch.float32, torch.bfloat16])  # of nominations: the numbers stay float32
def test_sparse_step_gradients_agree_with_autograd(
    limits: Limits, share: float, weight: float, aux_k: int, product_dtype: torch.dtype
) -> None:
    plain, expected, plain_counts = run(plain_step, limits, share, weight, aux_k)
    sparse, found, counts = run(SparseStep(product_dtype=product_dtype), limits, share, weight, aux_k)
    assert torch.equal(counts, plain_counts) and sparse.matches == plain.matches
    assert sparse.fvu.item() == pytest.approx(plain.fvu.item(), rel=1e-5)
    assert sparse.aux.item() == pytest.approx(plain.aux.item(), rel=1e-5)
    assert len(found) == len(expected) == 4
    for mine, theirs in zip(found, expected, strict=True):
        # Sums in another order differ by rounding: 1e-5 of the gradient's norm leaves room for 50 float32 roundings.
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm() + 1e-9


def nobody(counts: Tensor, n: int) -> Tensor:
    return torch.zeros_like(counts, dtype=torch.bool)


@pytest.mark.parametrize("step", [SparseStep(), plain_step])
def test_an_auxiliary_loss_that_is_not_finite_is_returned(step: Step) -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = model_of(generator), torch.randn(N, D_IN, generator=generator)
    with torch.no_grad():
        model.b_enc[7] = torch.nan
    losses = step(model, x, {"total": 0}, lambda counts, n: torch.arange(D_SAE) == 7, 0.5, 4)
    assert losses.aux.isnan()


def test_sparse_step_takes_batches_of_changing_size() -> None:
    generator = torch.Generator().manual_seed(0)
    model, step = model_of(generator), SparseStep()
    for n in (8, 16, 8):
        x = torch.randn(n, D_IN, generator=generator)
        limits: Limits = {"total": 4 * n}
        mine = step(model, x, limits, nobody, 0.1, 4)
        theirs = plain_step(model, x, limits, nobody, 0.1, 4)
        assert mine.fvu.item() == pytest.approx(theirs.fvu.item(), rel=1e-5)
