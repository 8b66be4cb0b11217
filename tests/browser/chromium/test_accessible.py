"""Each page can be used by keyboard, by a screen reader, on a phone, and by weak eyes, in light and in dark."""

from pathlib import Path
from typing import Any

import pytest
from made_site import context, feature, write_site
from playwright.sync_api import Page
from watched_pages import Pages, until

CHECKS = Path(__file__).with_name("page_checks.js").read_text().partition("\n")[2]  # without the comment above
TRY = "#/sae/try?text=some+text&edits=set:1:2,scale:2:3"
ROUTES = ("#/sae", "#/sae/1", "#/sae/search?q=label", "#/sae/search?like=1", TRY)
SHOWN = "() => document.querySelector('main h1') && document.title !== 'Features'"
BUBBLE = "(text) => document.querySelector('#bubble:not([hidden])')?.textContent.startsWith(text)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts: list[Any] = ["words before ", ["strong", 4.0], " and ", ["weak", 0.2], " and ", ["half", 2.0]]
    rows = [feature(number, contexts=[context(parts), context(parts, band=1, value=1.0)] * 4) for number in range(60)]
    rows[3] |= {"label": None, "source": "top tokens"}
    rows[4] |= {"count": 0, "density": 0, "max": 0, "mean": 0, "contexts": [], "tokens": [], "bands": []}
    return write_site(tmp_path_factory.mktemp("site") / "site", {"sae": rows, "other": rows[:5]})


def opened(open_page: Pages, site: Path, route: str, **more: Any) -> Page:
    page = open_page(site, route, **more)
    until(page, SHOWN)
    page.wait_for_timeout(300)
    return page


def check(page: Page, name: str, argument: Any = None) -> Any:
    """The result of a function of page_checks.js."""
    return page.evaluate(f"(argument) => {CHECKS.strip()}.{name}(argument)", argument)


@pytest.mark.parametrize("route", (*ROUTES, "#/sae/3", "#/sae/4", "#/nothing"))
def test_names_and_structure(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route)
    assert check(page, "names") == []
    assert check(page, "structure") == []
    page.keyboard.press("?")
    assert check(page, "names") == [] and page.evaluate("document.querySelector('dialog').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('dialog').open")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("route", (*ROUTES, "#/nothing"))
def test_contrast_of_text(open_page: Pages, site: Path, route: str, dark: bool) -> None:
    page = opened(open_page, site, route, dark=dark)
    assert check(page, "contrast") == []


def test_the_checks_see_what_is_wrong(open_page: Pages, site: Path) -> None:
    page = opened(open_page, site, "#/sae/1")
    page.evaluate("document.querySelector('h1').style.setProperty('color', 'rgb(200 200 200 / 90%)')")
    assert len(check(page, "contrast")) >= 1
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert check(page, "names") == ["<button></button>"]
    assert check(page, "targets") == []  # it has the least size
    page.evaluate("document.querySelector('main').append(document.createElement('h1'), 'text')")
    assert check(page, "structure") == ["2 h1"]
    page.evaluate("document.querySelector('main').style.setProperty('min-width', '3000px')")
    assert check(page, "sideways") > 1000
    page.evaluate("document.querySelector('main').style.setProperty('transition', 'color 1s')")
    assert any("min-width" in one or "<main" in one for one in check(page, "moving"))


@pytest.mark.parametrize("route", ROUTES)
def test_tab_reaches_all_and_the_focus_shows(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route, reduced_motion="reduce")  # it scrolls to the focus at once
    check(page, "beforeTab")
    seen: list[int] = []
    while len(seen) < 400:
        page.keyboard.press("Tab")
        told = check(page, "afterTab")
        if told is None or told["number"] in seen:
            break
        assert told["shows"], f"the focus does not show on {told['what']}"
        assert told["inside"], f"the focus is outside of the window on {told['what']}"
        seen.append(told["number"])
    assert len(seen) > 5 and check(page, "missed", seen) == []


@pytest.mark.parametrize("route", ROUTES)
def test_phone(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route, width=390, height=800, has_touch=True, is_mobile=True)
    assert check(page, "sideways") <= 0
    assert check(page, "targets") == []
    assert check(page, "tiny") == []
    page.set_viewport_size({"width": 320, "height": 700})
    page.wait_for_timeout(100)
    assert check(page, "sideways") <= 0, "at 320 pixels"


def test_values_of_tokens_by_tap_and_by_keyboard(open_page: Pages, site: Path) -> None:
    page = opened(open_page, site, "#/sae/1", width=390, height=800, has_touch=True, is_mobile=True)
    page.locator("main .hot").nth(1).tap()
    until(page, BUBBLE, "0.2")
    box = page.locator("#bubble").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.locator("main .peak").first.focus()
    until(page, BUBBLE, "4")
    page.keyboard.press("ArrowRight")
    until(page, BUBBLE, "0.2")
    assert page.evaluate("location.hash") == "#/sae/1", "arrows in a text do not leave the feature"


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_moves_for_those_who_ask_for_that(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route, reduced_motion="reduce")
    assert check(page, "moving") == [] and page.evaluate("document.getAnimations().length") == 0


def test_the_peak_is_seen_without_colours(open_page: Pages, site: Path) -> None:
    page = opened(open_page, site, "#/sae/1", forced_colors="active")
    assert page.evaluate(f"{CHECKS.strip()}.standsOut(document.querySelector('main .peak'))")


@pytest.mark.parametrize("route", ROUTES)
def test_text_of_twice_the_size(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route)
    page.evaluate("document.documentElement.style.setProperty('font-size', '200%')")
    page.wait_for_timeout(100)
    assert check(page, "sideways") <= 0
