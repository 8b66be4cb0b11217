"""The shares of a split, where documents differ much in length."""

import numpy as np
import pytest
from cases_common import documents_of, planted

from sae_runtime.train.held_out import split

SEEDS = range(30)
HOLDOUT = 0.1
EVEN = [100] * 200
UNEVEN = {
    "a book and ten notes": [19_000] + [100] * 10,
    "a book and 500 notes": [15_000] + [10] * 500,
    "three files": [10_000, 5_000, 5_000],
    "lengths by a Zipf law": [int(10_000 / (i + 1)) for i in range(40)],
}


def shares(sizes: list[int], seed: int) -> list[float]:
    """The shares of the rows that train, calibrate and validate."""
    activations = documents_of(np.resize(planted(2_000), (sum(sizes), 32)), sizes)
    parts = split(activations, HOLDOUT, seed)
    return [len(part) / len(activations) for part in (parts.train, parts.calibration, parts.validation)]


def assert_as_asked(sizes: list[int]) -> None:
    for seed in SEEDS:
        assert shares(sizes, seed) == pytest.approx([1 - HOLDOUT, HOLDOUT / 2, HOLDOUT / 2], rel=0.1)


def test_documents_of_equal_length_give_the_shares_that_were_asked() -> None:
    assert_as_asked(EVEN)


@pytest.mark.parametrize("name", UNEVEN)
def test_documents_of_unequal_length_give_the_shares_that_were_asked(name: str) -> None:
    assert_as_asked(UNEVEN[name])
