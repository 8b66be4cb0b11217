from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_runtime.train.step.allocation import allocate
from sae_runtime.train.step.largest import top_by_partition, top_by_topk
from sae_runtime.train.step.plain_step import Limits
from sae_runtime.train.step.selection import select
from sae_runtime.train.world import World


def pre_activations(n: int, d_sae: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d_sae, generator=torch.Generator().manual_seed(seed))


def positions(z: Tensor, limits: Limits) -> Tensor:
    return allocate(z.relu(), **limits).flatten().nonzero().squeeze(1)


def limits_of(n: int, d_sae: int) -> list[Limits]:
    generator = torch.Generator().manual_seed(1)
    tight = torch.randint(0, max(n // 8, 2), (d_sae,), generator=generator)
    return [
        {"per_token": 3},
        {"per_token": d_sae},
        {"total": 3 * n},
        {"total": 10 * n * d_sae},
        {"total": 0},
        {"total": 3 * n, "per_feature": tight},
        {"total": 3 * n, "per_feature": torch.full((d_sae,), n)},
        {"total": 3 * n, "per_feature": torch.zeros(d_sae, dtype=torch.int64)},
        {"total": 10 * n * d_sae, "per_feature": tight},
        {"total": int(tight.sum()), "per_feature": tight},
        {"total": int(tight.sum()) * 3 // 4, "per_feature": tight},
    ]


# With and without groups: whole groups of 32 need n * d_sae to be a multiple of it, and a small budget.
@pytest.mark.parametrize(("n", "d_sae"), [(1, 5), (7, 33), (64, 1504), (40, 96)])
@pytest.mark.parametrize("number", range(11))
def test_select_agrees_with_allocate(n: int, d_sae: int, number: int) -> None:
    z, limits = pre_activations(n, d_sae), limits_of(n, d_sae)[number]
    at, values = select(z, **limits)
    assert torch.equal(at, positions(z, limits)) and torch.equal(values, z.view(-1)[at])


# 1504 features: the margin of candidates is never all there is.
@pytest.mark.parametrize("number", range(11))
def test_select_decides_by_exact_values_of_nominated_candidates(number: int) -> None:
    z, limits = pre_activations(64, 1504), limits_of(64, 1504)[number]
    asked: list[Tensor] = []

    def exact(at: Tensor) -> Tensor:
        asked.append(at)
        return z.view(-1)[at]

    at, values = select(z.bfloat16(), **limits, exact=exact)
    assert torch.equal(at, positions(z, limits)) and torch.equal(values, z.view(-1)[at])
    assert all(torch.equal(part, part.sort().values) for part in asked)


def test_select_looks_further_if_one_column_holds_most_candidates() -> None:
    z = pre_activations(64, 1504).relu()
    z[:, 0] += 100
    z[:, 1] += 50
    limits: Limits = {"total": 100, "per_feature": torch.full((1504,), 2)}
    at, values = select(z, **limits)
    assert torch.equal(at, positions(z, limits)) and torch.equal(values, z.view(-1)[at])


# Uniform caps, and a head that is capped while the tail has hardly anything to give.
@pytest.mark.parametrize("tail", [8, 1])
def test_select_reads_few_candidates_if_limits_sum_to_the_total(
    tail: int,
) -> None:
    looks: list[int] = []

    class Counted(World):
        def gather(self, tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():  # the values of the candidates of one look
                looks.append(len(tensor))
            return tensor

    z, max_densities = pre_activations(64, 1504), torch.full((1504,), 8)
    max_densities[100:] = tail
    z[:, 100:] -= 1
    limits: Limits = {"total": int(max_densities.sum()), "per_feature": max_densities}
    at, values = select(z, **limits, world=Counted())
    assert torch.equal(at, positions(z, limits)) and torch.equal(values, z.view(-1)[at])
    assert len(looks) <= 3 and sum(looks[:-1]) < z.numel() / 4 and looks[-1] <= int(max_densities.sum())


TOPS = [top_by_topk, top_by_partition]


# Rounded, so that many are equal; 332 are positive.
@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("count", [1, 17, 100, 331, 332, 333, 999, 1000])
def test_top_gives_the_largest_positive_numbers_in_order(top: Callable[[Tensor, int], Tensor], count: int) -> None:
    values = (pre_activations(1, 1000)[0] - 0.43).mul(20).round() / 20
    best = values.sort(descending=True).values[:count]
    at = top(values, count)
    assert torch.equal(values[at].sort(descending=True).values, best[best > 0])
    assert (at.diff() > 0).all()


@pytest.mark.parametrize("top", TOPS)
def test_top_leaves_out_nan(top: Callable[[Tensor, int], Tensor]) -> None:
    values = pre_activations(1, 1000)[0]
    values[::7] = torch.nan
    for count in (10, 300):
        at = top(values, count)
        assert len(at) <= count and not values[at].isnan().any()


def test_ties_fill_the_total_exactly() -> None:
    z = torch.ones(16, 64)
    assert len(select(z, total=17)[0]) == 17
    assert len(select(z, per_token=2)[0]) == 32
    at, _ = select(z, total=1000, per_feature=torch.full((64,), 3))
    assert (torch.bincount(at % 64, minlength=64) == 3).all()


def test_select_refuses_other_combinations_of_limits() -> None:
    with pytest.raises(ValueError, match="per_token comes alone"):
        select(pre_activations(2, 4), per_token=1, total=1)
    with pytest.raises(ValueError, match="select needs per_token or total"):
        select(pre_activations(2, 4))
