import numpy as np
import pytest
import torch

from sae_runtime.train.measure.redundancy import BINS, effective_rank, largest_cosines, redundancy


def test_redundancy_agrees_with_numpy_in_blocks_of_any_size() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((37, 6))
    rows[20] = 3 * rows[4] + 0.01 * rows[5]  # nearly the same direction
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (unit @ unit.T - 9 * np.eye(37)).max(axis=1)
    values = np.linalg.svd(unit, compute_uv=False)
    share = values / values.sum()
    for elements in (1, 5 * 37, 1 << 24):
        found = redundancy(torch.tensor(rows), elements=elements)
        assert found.median == pytest.approx(np.median(expected))
        assert found.high == pytest.approx(np.quantile(expected, 0.99))
        assert found.nearly_equal == pytest.approx((expected > 0.9).mean()) and found.nearly_equal >= 2 / 37
        assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert found.histogram == tuple(np.histogram(expected, BINS, (-1, 1))[0])
        assert largest_cosines(torch.tensor(unit), elements=elements).numpy() == pytest.approx(expected)


def test_redundancy_of_a_single_row_of_equal_rows_and_of_zeros() -> None:
    assert largest_cosines(torch.ones(1, 1)).tolist() == [-1.0]
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(torch.ones(4, 3)) == pytest.approx(1.0)
    nothing = redundancy(torch.zeros(3, 2))
    assert (nothing.median, nothing.effective_rank) == (0.0, 0.0)
    assert redundancy(torch.ones(3, 2)).high == pytest.approx(1.0)
