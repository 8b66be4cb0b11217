"""The colours of the pages' look, light and dark, and how well one is told from another."""

import re
from importlib.resources import files

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
    """The contrast of WCAG, 1 to 21."""
    bright, dark = sorted((luminance(rgb(one)), luminance(rgb(other))), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
