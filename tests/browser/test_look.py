"""Text and signs are told from what is behind them, light and dark."""

import pytest
from contrast import DARK, LIGHT, SIGN, TEXT, contrast


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777", "119, 119, 119") == 1
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_are_told_apart(theme: dict[str, str]) -> None:
    assert theme.keys() == LIGHT.keys()
    pairs = [(text, back, TEXT) for text in ("ink", "dim", "accent", "bad") for back in ("back", "card")]
    pairs += [("accent-ink", "accent", TEXT), ("ink", "heat", TEXT)]  # the hottest token; others are nearer the card
    pairs += [(sign, back, SIGN) for sign in ("edge", "bar") for back in ("back", "card")]
    low = [(one, other) for one, other, asked in pairs if contrast(theme[one], theme[other]) < asked]
    assert not low
