import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.exports import witness
from sae_runtime.train.step.allocation import allocate
from sae_runtime.train.step.largest import largest_of_columns


def pre_activations(n: int, d_sae: int, seed: int = 0) -> Tensor:
    return torch.relu(torch.randn(n, d_sae, generator=torch.Generator().manual_seed(seed)))


def numpy_joint(z: Tensor, total: int, limit: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    n = len(z)
    max_density = None if limit is None else limit / n
    return witness.joint(z.double().numpy(), total / n, max_density).kept


@pytest.mark.parametrize(("n", "d_sae"), [(1, 5), (7, 40), (64, 1500)])
def test_allocate_agrees_with_numpy(n: int, d_sae: int) -> None:
    z = pre_activations(n, d_sae)
    total = 3 * n
    limit = np.random.default_rng(0).integers(0, n + 1, d_sae)
    assert (allocate(z, per_token=3).numpy() == witness.token_choice(z.double().numpy(), 3).kept).all()
    assert (allocate(z, total=total).numpy() == numpy_joint(z, total, None)).all()
    mask = allocate(z, total=total, per_feature=torch.from_numpy(limit))
    assert (mask.numpy() == numpy_joint(z, total, limit)).all()


def test_largest_of_columns_gives_the_largest_of_each_column() -> None:
    z, limit = torch.randn(20, 70, generator=torch.Generator().manual_seed(0)), torch.arange(70) % 23
    expected = [
        row * 70 + column for column in range(70) for row in z[:, column].argsort(descending=True)[: limit[column]]
    ]
    assert sorted(largest_of_columns(z, limit).tolist()) == sorted(int(at) for at in expected)


def test_one_token_mutual_choice_is_token_choice() -> None:
    z = pre_activations(1, 30)
    assert torch.equal(allocate(z, total=4), allocate(z, per_token=4))


def test_loose_limits_are_mutual_choice_and_no_limit_is_relu() -> None:
    z = pre_activations(9, 30)
    assert torch.equal(allocate(z, total=20, per_feature=torch.full((30,), 9)), allocate(z, total=20))
    assert torch.equal(allocate(z), z > 0)
    assert torch.equal(allocate(z, total=10_000, per_token=10_000), z > 0)


def test_the_order_of_features_does_not_matter() -> None:
    z, limit = pre_activations(50, 80), torch.randint(0, 50, (80,), generator=torch.Generator().manual_seed(1))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    assert torch.equal(allocate(z[:, order], per_feature=limit[order]), allocate(z, per_feature=limit)[:, order])


def test_permuting_tokens_permutes_matches() -> None:
    z, limit = pre_activations(50, 80), torch.full((80,), 7)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    kept = allocate(z, total=200, per_feature=limit)
    assert torch.equal(allocate(z[order], total=200, per_feature=limit), kept[order])


def test_ties_fill_the_total_exactly() -> None:
    z = torch.ones(6, 10)
    assert allocate(z, total=17).sum() == 17
    assert (allocate(z, per_token=3).sum(dim=1) == 3).all()
    assert (allocate(z, per_feature=torch.full((10,), 2)).sum(dim=0) == 2).all()


def test_zeros_never_match() -> None:
    z = torch.zeros(4, 6)
    z[1, 2] = 1.0
    for kept in (allocate(z, total=20), allocate(z, per_token=6), allocate(z, per_feature=torch.full((6,), 4))):
        assert kept.nonzero().tolist() == [[1, 2]]
    assert not allocate(z, total=0).any()
    assert allocate(torch.zeros(0, 6), total=0, per_feature=torch.zeros(6, dtype=torch.int64)).shape == (0, 6)
