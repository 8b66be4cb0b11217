import numpy as np
import torch

from sae_runtime.train.step.losses import aux_k_loss, fvu, under_used


def test_fvu_is_one_for_the_mean_and_zero_for_the_data() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + 3
    assert fvu(x, x).item() == 0
    assert abs(fvu(x, x.mean(dim=0).expand_as(x)).item() - 1) < 1e-6


def test_aux_k_loss_agrees_with_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    residual, decoder = torch.randn(20, 5, generator=generator), torch.randn(12, 5, generator=generator)
    z = torch.relu(torch.randn(20, 12, generator=generator))
    among = torch.arange(12) % 2 == 0
    expected = np.zeros((20, 5))
    for token in range(20):
        for feature in sorted(range(0, 12, 2), key=lambda f: -z[token, f].item())[:4]:
            expected[token] += z[token, feature].item() * decoder[feature].double().numpy()
    e = residual.double().numpy()
    wanted = ((e - expected) ** 2).sum() / ((e - e.mean(axis=0)) ** 2).sum()
    assert abs(aux_k_loss(residual, z, decoder, among, 4).item() - wanted) < 1e-5
    # Six features cannot fill sixteen places: the loss shrinks with what they can do.
    alone = aux_k_loss(residual, z, decoder, among, 6).item()
    assert abs(aux_k_loss(residual, z, decoder, among, 16).item() - alone * 6 / 16) < 1e-6


def test_aux_k_loss_trains_only_the_features_it_is_given() -> None:
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(20, 5, generator=generator, requires_grad=True)
    decoder = torch.randn(12, 5, generator=generator, requires_grad=True)
    z = torch.rand(20, 12, generator=generator, requires_grad=True)
    among = torch.arange(12) < 3
    aux_k_loss(residual, z, decoder, among, 2).backward()  # type: ignore[no-untyped-call]
    assert residual.grad is None
    assert decoder.grad is not None and z.grad is not None
    assert (decoder.grad[:3] != 0).any() and (decoder.grad[3:] == 0).all()
    assert (z.grad[:, :3] != 0).any() and (z.grad[:, 3:] == 0).all()


def test_aux_k_loss_without_features_or_residual_is_zero() -> None:
    z, decoder = torch.ones(3, 4), torch.ones(4, 2)
    assert aux_k_loss(torch.ones(3, 2), z, decoder, torch.zeros(4, dtype=torch.bool), 2).item() == 0
    loss = aux_k_loss(torch.zeros(3, 2), torch.zeros(3, 4), decoder, torch.ones(4, dtype=torch.bool), 2)
    assert loss.item() == 0


def test_aux_k_loss_of_numbers_that_are_not_finite_is_nan() -> None:
    z = torch.rand(6, 4)
    z[2, 1] = torch.nan
    assert aux_k_loss(torch.ones(6, 2), z, torch.ones(4, 2), torch.ones(4, dtype=torch.bool), 2).isnan()


def test_under_used_with_gamma_zero_gives_the_dead_features() -> None:
    density = torch.tensor([0.5, 0.2, 0.01, 0.0])
    expected = torch.tensor([0.4, 0.3, 0.2, 0.1])
    dead = torch.tensor([False, False, False, True])
    assert torch.equal(under_used(density, expected, dead, 0.0), dead)
    assert under_used(density, expected, dead, 0.5).tolist() == [False, False, True, True]
    assert under_used(density, expected, dead, 1.0).tolist() == [False, True, True, True]
