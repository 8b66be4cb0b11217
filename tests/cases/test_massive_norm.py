"""SAEs fitted where one token in 64 has a norm of 30 to 1,000 times the median, as attention sinks have.

The FVU and L0 of the ordinary tokens are to be what they are without such tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from cases_common import fitted, planted, read_weights, true_features, true_fvu, with_sinks

K = 4
KINDS = ("token", "mutual", "feature")


class Ordinary(NamedTuple):
    """What an SAE does to ordinary tokens that it was not fitted on."""

    fvu: float
    l0: float


Fit = Callable[[str, float], Ordinary]


@pytest.fixture(scope="module")
def fit_beside_sinks(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Fit an SAE of an allocation on rows with sinks of a ratio; each one once."""
    made: dict[tuple[str, float], Ordinary] = {}
    rows, test = planted(40_000), planted(8_000, seed=99)

    def give(kind: str, ratio: float) -> Ordinary:
        if (kind, ratio) not in made:
            path = tmp_path_factory.mktemp("sinks") / "sae"
            fitted(with_sinks(rows, ratio)[0], path, allocation=kind, k=K, tokens=400_000, batch=1024)
            weights = read_weights(path)
            features = true_features(weights, test, K)
            made[kind, ratio] = Ordinary(true_fvu(weights, test, features), float((features > 0).sum(axis=1).mean()))
        return made[kind, ratio]

    return give


def test_without_sinks_mutual_choice_has_the_expected_fvu(fit_beside_sinks: Fit) -> None:
    fvu, l0 = fit_beside_sinks("mutual", 0)
    assert 0.040 < fvu < 0.046
    assert l0 == pytest.approx(K, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [30, 300, 1000])
def test_sinks_leave_ordinary_tokens_as_they_are(fit_beside_sinks: Fit, kind: str, ratio: float) -> None:
    without, beside = fit_beside_sinks(kind, 0), fit_beside_sinks(kind, ratio)
    assert beside.fvu < 1.07 * without.fvu
    assert beside.l0 == pytest.approx(K, rel=0.1)
