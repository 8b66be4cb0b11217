"""Features that tell texts apart, found in a deployed model and compared with what numpy finds at a torch hook."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import D_SAE, by_torch, deploy, some_texts

from sae_runtime import Model, load_model
from sae_runtime.extraction.finding import find

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = list(dict.fromkeys(some_texts(60, 12)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Model:
    folder = tmp_path_factory.mktemp("models") / "model"
    return load_model(deploy(folder, "bert", {"bundle": bundle_of("mutual", D_SAE)}), threads=1)


def own_features(text: str) -> Any:
    """Features of the words of a text, without those around it, by torch and numpy: [words, d_sae]."""
    return by_torch("bert", text, "mutual")[0][1:-1]


@pytest.mark.parametrize("pool", ["max", "mean", "sum"])
def test_figures_are_those_of_features_at_a_torch_hook(model: Model, pool: Any) -> None:
    about, against = TEXTS[:1], TEXTS[1:25]  # one text ranks and measures, so that the witness knows the texts
    found = find(model, about, against, pool=pool, count=8, examples=2)
    rows = np.array([getattr(own_features(text), pool)(axis=0) for text in found.texts])
    assert found.texts == (*about, *against) and not found.contrast.held_out and found.sae == "sae"
    difference = np.abs(rows[:1].mean(axis=0) - rows[1:].mean(axis=0))
    areas = (rows[:1] > rows[1:]).mean(axis=0) + (rows[:1] == rows[1:]).mean(axis=0) / 2
    best = sorted(range(D_SAE), key=lambda f: (-round(abs(areas[f] - 0.5), 9), -difference[f]))[:8]
    assert [one.feature for one in found.contrast.features] == best
    for one in found.contrast.features:
        assert one.auc == pytest.approx(max(areas[one.feature], 1 - areas[one.feature]))
        assert one.mean == pytest.approx((rows[0, one.feature], rows[1:, one.feature].mean()), rel=1e-4)
        assert one.density == ((rows[0, one.feature] > 0).mean(), (rows[1:, one.feature] > 0).mean())


def test_examples_are_the_tokens_where_a_feature_is_strongest(model: Model) -> None:
    found = find(model, TEXTS[:20], TEXTS[20:40], count=5, examples=3)
    assert len(found.examples) == 5
    for one, examples in zip(found.contrast.features, found.examples, strict=True):
        values = [own_features(text)[:, one.feature] for text in found.texts]
        largest = np.array([value.max() for value in values])
        assert len(examples) == min(3, np.count_nonzero(largest))
        assert [e.value for e in examples] == pytest.approx(sorted(largest, reverse=True)[: len(examples)], rel=1e-4)
        for example in examples:
            text = found.texts[example.text]
            word = int(values[example.text].argmax())
            assert text[example.begin : example.end] == text.split()[word]


def test_a_planted_feature_is_found_first(model: Model) -> None:
    """The sets are the texts in which one feature is strong, and those in which it is weak or absent."""
    largest = np.array([own_features(text).max(axis=0) for text in TEXTS])
    planted = int(np.argmin(np.abs((largest > 0).mean(axis=0) - 0.6)))
    order = [TEXTS[number] for number in np.argsort(-largest[:, planted])]
    for swapped in (False, True):
        sets = (order[:24], order[24:]) if not swapped else (order[24:], order[:24])
        best = find(model, *sets, count=3).contrast.features[0]
        assert (best.feature, best.more, best.auc) == (planted, "against" if swapped else "about", 1)
        assert best.interval[0] > 0.7


def test_texts_that_come_again_do_not_count(model: Model) -> None:
    found = find(model, [*TEXTS[:6], *TEXTS[2:4], TEXTS[10]], TEXTS[6:12] + [TEXTS[6]], count=2)
    assert found.texts == (*TEXTS[:6], *TEXTS[6:10], TEXTS[11])
    assert (found.twice, found.in_both) == (3, 1)
    with pytest.raises(ValueError, match="each of the 2 texts about is also against; give texts that differ"):
        find(model, TEXTS[:2], TEXTS[:4])
    with pytest.raises(ValueError, match="there are no texts against"):
        find(model, TEXTS[:2], [])
    with pytest.raises(ValueError, match="max, mean or sum, got 'median'"):
        find(model, TEXTS[:2], TEXTS[2:4], pool="median")  # type: ignore[arg-type]
