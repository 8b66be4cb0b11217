"""A threshold for a mean L0, and the figures of a fit, where one token in 64 has a thousandfold norm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases_common import Rows, calibrated, fitted, planted, read_weights, true_features, true_fvu, with_sinks
from numpy.typing import NDArray

K = 4
SETTINGS: dict[str, Any] = {"allocation": "mutual", "k": K, "d_sae": 384, "tokens": 400_000, "batch": 1024}


class Case:
    """An SAE that was fitted on ordinary tokens, and other rows with and without sinks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sae = folder / "sae"
        fitted(planted(20_000), self.sae, **SETTINGS)
        rows, sink = with_sinks(planted(20_000, seed=5), 1000)
        self.rows: Rows = rows
        self.ordinary: NDArray[np.bool_] = ~sink
        np.save(folder / "with.npy", rows)
        np.save(folder / "without.npy", rows[self.ordinary])

    def own_figures(self, sae: Path) -> tuple[float, float]:
        """The true FVU and mean L0 of the ordinary tokens."""
        weights, x = read_weights(sae), self.rows[self.ordinary]
        features = true_features(weights, x)
        return true_fvu(weights, x, features), float((features > 0).sum(axis=1).mean())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("sinks"))


def test_a_threshold_from_ordinary_tokens_gives_them_the_l0_that_was_asked(case: Case, tmp_path: Path) -> None:
    measured = calibrated(case.sae, case.folder / "without.npy", tmp_path / "out", k=K)
    fvu, l0 = case.own_figures(tmp_path / "out")
    assert l0 == pytest.approx(K, rel=0.05)
    assert measured["fvu"] == pytest.approx(fvu, rel=0.1)
    assert 0.040 < fvu < 0.046


def test_a_threshold_from_rows_with_sinks_gives_ordinary_tokens_the_l0_that_was_asked(
    case: Case, tmp_path: Path
) -> None:
    calibrated(case.sae, case.folder / "with.npy", tmp_path / "out", k=K)
    fvu, l0 = case.own_figures(tmp_path / "out")
    assert l0 == pytest.approx(K, rel=0.1)
    assert fvu < 0.047


def test_the_fvu_that_a_fit_reports_is_that_of_ordinary_tokens(case: Case, tmp_path: Path) -> None:
    measured = fitted(case.folder / "with.npy", tmp_path / "sae", **SETTINGS)
    fvu, _ = case.own_figures(tmp_path / "sae")
    assert measured["fvu"] == pytest.approx(fvu, rel=0.25)
