from pathlib import Path

import numpy as np
import pytest

from sae_runtime.train.source import centre_and_scale, generator


def test_generator_gives_each_purpose_its_own_random_numbers() -> None:
    first = [generator(3, "order", 1).random(), generator(3, "order", 1).random()]
    others = [generator(4, "order", 1), generator(3, "rows", 1), generator(3, "order", 2), generator(3, "order")]
    assert first[0] == first[1] and len({first[0], *(other.random() for other in others)}) == 5


def test_scale_brings_the_distance_from_the_mean_to_sqrt_d_in() -> None:
    x = np.random.default_rng(0).normal(5, 2, (1000, 3)).astype(np.float32)
    mean, scale = centre_and_scale(x, Path("x.npy"))
    assert mean == pytest.approx(x.mean(axis=0), rel=1e-5)
    assert np.linalg.norm((x - mean) * scale, axis=1).mean() == pytest.approx(np.sqrt(3), rel=1e-5)


def test_scale_refuses_equal_rows() -> None:
    with pytest.raises(ValueError, match=r"^x\.npy: all rows are equal"):
        centre_and_scale(np.full((50, 3), 7.3, np.float32), Path("x.npy"))
