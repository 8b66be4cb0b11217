import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_manifest

from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.plausible import OtherRows, warn_of_other_rows


def manifest(**measured: float) -> Manifest:
    return replace(make_manifest(30, "mutual"), measured=measured)


@pytest.mark.parametrize(("l0", "fvu"), [(0.1, None), (40.0, 0.3), (16.0, 0.7), (7.9, None)])
def test_figures_far_from_the_measured_ones_are_warned_of(l0: float, fvu: float | None) -> None:
    with pytest.warns(OtherRows, match=r"^acts: .* where the bundle's is"):
        warn_of_other_rows(manifest(l0=16.0, fvu=0.3), Path("acts"), tokens=1000, l0=l0, fvu=fvu)


@pytest.mark.parametrize(
    ("l0", "fvu", "tokens"), [(9.0, None, 1000), (30.0, 0.5, 1000), (16.0, 0.0, 1000), (0.1, 3, 5)]
)
def test_figures_near_the_measured_ones_and_of_few_tokens_are_not(l0: float, fvu: float | None, tokens: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_rows(manifest(l0=16.0, fvu=0.3), Path("acts"), tokens=tokens, l0=l0, fvu=fvu)
        warn_of_other_rows(manifest(), Path("acts"), tokens=1000, l0=l0, fvu=fvu)


def test_activations_with_the_rows_that_training_left_out_may_have_their_l0() -> None:
    beside_sinks = replace(manifest(l0=4.0), measured_with_left_out={"l0": 12.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_rows(beside_sinks, Path("x.npy"), tokens=1000, l0=13.0)
    with pytest.warns(OtherRows, match="mean L0 is 30 where the bundle's is 4"):
        warn_of_other_rows(beside_sinks, Path("x.npy"), tokens=1000, l0=30.0)
