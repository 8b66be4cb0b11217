import functools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from contrast import DARK, LIGHT, SIGN, contrast
from matplotlib.colors import to_hex

from sae_runtime.browser import plots

NAMESPACE = "{http://www.w3.org/2000/svg}"
DENSITY, COUNTS = {"a": np.array([0.4, 0.1, 0.02])}, {"a": np.array([0, 3, 4])}


@functools.cache
def drawn() -> list[str]:
    return [plots.density_by_rank(DENSITY, DENSITY), plots.active_features(COUNTS), plots.largest_cosines(COUNTS)]


def test_equal_figures_give_equal_bytes() -> None:
    assert plots.active_features(COUNTS) == drawn()[1]


def test_a_policy_against_styles_and_scripts_lets_pictures_be() -> None:
    allowed = {"svg", "title", "path", "defs", "use", "text", "g", "clipPath", "rect"}
    for picture in drawn():
        root = ElementTree.fromstring(picture)
        assert {element.tag.removeprefix(NAMESPACE) for element in root.iter()} <= allowed
        assert not [element for element in root.iter() if "style" in element.attrib]
        assert "#000000" not in picture and "#ffffff" not in picture and "DejaVu" not in picture


def test_pictures_of_one_page_share_no_name() -> None:
    names = [name for picture in drawn() for name in re.findall(r'id="(\w+)"', picture)]
    assert len(names) == len(set(names)) > 3
    for picture in drawn():
        assert set(re.findall(r"#([a-z]\w{10})", picture)) == set(re.findall(r'id="(\w+)"', picture))


def test_a_picture_says_what_it_shows() -> None:
    root = ElementTree.fromstring(plots.active_features({"a & <b>": np.array([0, 3, 4])}))
    assert root.get("role") == "img"
    assert (
        root.findtext(f"{NAMESPACE}title") == "Active features per token, as served: share of tokens, active features"
    )
    texts = [element.text for element in root.iter(f"{NAMESPACE}text")]
    assert "a & <b>" in texts and "share of tokens" in texts


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_are_told_from_what_is_behind_them(theme: dict[str, str]) -> None:
    colours = [theme["ink"] if colour == "black" else to_hex(colour) for colour in plots.COLOURS]
    assert not [colour for colour in colours if contrast(colour, theme["card"]) < SIGN]
