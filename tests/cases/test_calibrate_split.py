"""The part of the rows on which `calibrate` measures, where documents differ much in length."""

from pathlib import Path

import pytest
from cases_common import calibrated, documents_of, fitted, planted, read_weights, true_features

ROWS = planted(20_000)
UNEVEN = ([100, 19_900], [19_900, 100], [10, 10, 19_000], [30, 19_970], [2, 19_998])


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrate_split") / "sae"
    fitted(ROWS, path, tokens=40_000)
    return path


def measured_share(sae: Path, sizes: list[int], out: Path) -> float:
    """The share of the rows that a new threshold was measured on."""
    return calibrated(sae, documents_of(ROWS, sizes), out, k=4)["tokens"] / sum(sizes)


def test_documents_of_equal_length_leave_a_quarter_to_measure_on(sae: Path, tmp_path: Path) -> None:
    assert measured_share(sae, [100] * 200, tmp_path / "out") == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("sizes", UNEVEN, ids=str)
def test_documents_of_unequal_length_leave_a_quarter_to_measure_on(sae: Path, tmp_path: Path, sizes: list[int]) -> None:
    assert measured_share(sae, sizes, tmp_path / "out") == pytest.approx(0.25, rel=0.1)


def mean_l0(sae: Path, sizes: list[int], out: Path) -> float:
    """The true mean L0 on all rows under a threshold that documents of these sizes gave."""
    calibrated(sae, documents_of(ROWS, sizes), out, k=4)
    return float((true_features(read_weights(out), ROWS) > 0).sum(axis=1).mean())


def test_a_long_first_document_gives_the_l0_that_was_asked(sae: Path, tmp_path: Path) -> None:
    assert mean_l0(sae, [19_900, 100], tmp_path / "out") == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("sizes", [[10, 10, 19_000], [2, 19_998]], ids=str)
def test_a_short_first_document_gives_the_l0_that_was_asked(sae: Path, tmp_path: Path, sizes: list[int]) -> None:
    assert mean_l0(sae, sizes, tmp_path / "out") == pytest.approx(4, rel=0.1)
