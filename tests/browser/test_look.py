"""The colours of the look, read from its file: text and signs are told from what is behind them, light and dark."""

import re
from importlib.resources import files

import pytest

LOOK = files("sae_runtime.browser").joinpath("assets/shared/look.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", LOOK, re.S))
TEXT, SIGN = 4.5, 3.0  # what WCAG 2.2 asks: 1.4.3 of text, 1.4.11 of what a person must see to use a page

Colour = tuple[float, float, float]


def rgb(value: str) -> Colour:
    """A colour of the file, as #abc, #aabbcc or "r, g, b"."""
    if value.startswith("#"):
        digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
        numbers = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
    else:
        numbers = [int(number) for number in value.split(",")]
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue


def luminance(colour: Colour) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(rgb(one)), luminance(rgb(other))), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


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
