"""The page of a feature: what it shows, how its values are read, and how one goes from feature to feature."""

from pathlib import Path

import pytest
from made_site import context, feature, write_site
from shown_page import shown
from site_host import Answer
from watched_pages import Pages, until

HOSTILE = "<img src=x onerror=window.pwned=1>\u202e"
LONG = "word " * 60
DEAD = {"label": None, "source": None, "count": 0, "density": 0.0, "mean": 0.0, "max": 0.0, "histogram": [0] * 4}
DEAD |= {"bands": [], "tokens": [], "contexts": [], "promoted": None, "suppressed": None, "together": None}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Features of which 3 is dead, 4 hostile, 5 of long texts, 6 of many contexts and without a label."""
    rows = [feature(number) for number in range(10)]
    rows[3] |= DEAD
    hostile = context([HOSTILE, [HOSTILE, 4.0]], file=HOSTILE, licence=HOSTILE)
    rows[4] |= {"label": HOSTILE, "source": HOSTILE, "tokens": [[HOSTILE, 1, 1.0]], "contexts": [hostile]}
    rows[4] |= {"promoted": [[HOSTILE, 1.0]], "suppressed": [[HOSTILE, -1.0]]}
    rows[5] |= {"contexts": [context([LONG, [" cake", 4.0], f" {LONG}", ["\n", 1.0]])]}
    many = [context([f"text {i} ", ["cake", 4.0 - i / 10]], value=4.0 - i / 10) for i in range(20)]
    rows[6] |= {"label": "cake, tea", "source": "top tokens", "contexts": many}
    return write_site(tmp_path / "site", {"one": rows})


def test_page_shows_what_the_store_knows(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/1")
    shown(page)
    assert page.title() == "1 label 1 · one · A site"
    said = page.inner_text("main")
    for expected in ("Labelled by a person.", "1 %", "of 900", "Top 50 %", "2 to 4", "50 to 100 %", "a.txt:7 · MIT"):
        assert expected in said, said
    assert page.locator(".of-tokens li").first.inner_text().split() == ["cake", "5×", "2"]
    assert page.locator(".of-promoted li").inner_text().split() == ["bread", "1.5"]
    until(page, "document.querySelector('.of-neighbours a').textContent === '0 label 0'")
    assert page.get_attribute(".of-together a", "href") == "#/one/2"


def test_value_of_a_token_is_read_by_pointer_and_keys(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/1")
    shown(page)
    first, other = page.locator(".contexts li").first.locator(".hot").all()
    assert first.evaluate("(one) => one.style.getPropertyValue('--share')") == "1.000"
    assert first.evaluate("(one) => one.classList.contains('peak')")
    other.hover()
    assert page.inner_text("#bubble") == "1 · 25 % of 4"
    page.mouse.move(0, 0)
    assert page.is_hidden("#bubble")
    first.focus()
    assert page.inner_text("#bubble") == "4 · 100 % of 4"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#bubble") == "1 · 25 % of 4"
    assert page.evaluate("location.hash") == "#/one/1", "an arrow in a text does not leave the feature"
    page.keyboard.press("Escape")
    assert page.is_hidden("#bubble")


def test_finger_reads_a_value(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/1", has_touch=True, width=390, height=844)
    shown(page)
    page.locator(".contexts .hot").first.tap()
    assert page.inner_text("#bubble") == "4 · 100 % of 4"


def test_keys_go_from_feature_to_feature(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/0")
    shown(page)
    for key, number in (("n", 1), ("ArrowRight", 2), ("p", 1), ("ArrowLeft", 0), ("p", 9), ("n", 0)):
        page.keyboard.press(key)
        shown(page, f"#/one/{number}")
        assert page.locator("h1 .id").inner_text() == str(number)
    page.keyboard.press("/")
    page.keyboard.type("np")
    shown(page, "#/one/search?q=np")
    page.keyboard.press("Tab")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("n")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    page.evaluate("location.hash = '#/one/1'")
    shown(page, "#/one/1")
    page.keyboard.press("r")
    until(
        page, "location.hash !== '#/one/1' || (document.dispatchEvent(new KeyboardEvent('keydown', {key: 'r'})), false)"
    )


def test_history_keeps_pages_and_places(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/6")
    shown(page)
    page.click("text=All contexts")
    page.evaluate("scrollTo(0, 400)")
    page.keyboard.press("n")
    shown(page, "#/one/7")
    assert page.evaluate("scrollY") == 0
    page.go_back()
    shown(page, "#/one/6")
    assert page.evaluate("scrollY") == 400
    page.go_forward()
    shown(page, "#/one/7")
    page.reload()
    shown(page, "#/one/7")
    assert page.inner_text("h1") == "7 label 7"


def test_more_contexts_and_whole_texts(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/6")
    shown(page)
    assert "cake · tea" in page.inner_text("h1"), "top tokens stand for a label"
    assert page.locator(".contexts li").count() == 6
    page.click(".contexts .more")
    assert page.locator(".contexts li").count() == 20
    page.evaluate("location.hash = '#/one/5'")
    shown(page, "#/one/5")
    short = page.inner_text(".contexts .text")
    assert short.startswith("… word") and "cake" in short and len(short) < 300
    page.click("text=Whole texts")
    assert len(page.inner_text(".contexts .text")) > 600
    assert "↵" in page.inner_text(".contexts .text"), "a line's end that is a token shows"


def test_dead_feature_says_so(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/3")
    shown(page)
    assert page.inner_text("h1") == "3 never active"
    assert "This feature is dead: it is active on no token of the store." in page.inner_text("main")
    assert page.locator(".of-neighbours a").count() == 2
    assert page.locator(".figures strong").all_inner_texts() == ["0", "0", "–", "–"]


def test_paper_shows_texts_and_shades_without_buttons(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/1")
    shown(page)
    assert page.locator("#nav").is_visible() and page.locator("text=Copy link").is_visible()
    page.emulate_media(media="print")
    assert not page.locator("#nav").is_visible() and not page.locator("text=Copy link").is_visible()
    adjusted = page.eval_on_selector(".hot", "(one) => getComputedStyle(one).webkitPrintColorAdjust")
    assert adjusted == "exact", "a browser prints no backgrounds otherwise"


def test_hostile_texts_are_text(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/4")
    shown(page)
    until(page, "document.querySelector('.calls')")
    assert page.locator("main img").count() == 0
    assert "onerror" in page.inner_text("h1") and "onerror" in page.inner_text(".of-promoted")
    page.evaluate("location.hash = '#/one/5'")
    shown(page, "#/one/5")
    page.locator(".button[rel=prev]").hover()


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ("#/one/10", "one has features 0 to 9, and there is no 10."),
        ("#/three", "This site has no SAE named three; it has one."),
        ("#/one/x", "a feature is named by its number, 0 to 9."),
    ],
)
def test_address_that_is_none(open_page: Pages, site: Path, route: str, said: str) -> None:
    page = open_page(site, route)
    assert said in until(page, "document.querySelector('[role=alert]')?.textContent")
    page.get_by_role("link", name="Search").click()
    shown(page, "#/one/search")


def test_feature_of_another_shape_is_a_sentence(open_page: Pages, site: Path) -> None:
    odd = b'{"first": 0, "features": [{"feature": 0, "label": {"toString": 1}}]}'
    open_page.host(site).answers["data/one/features/00000.json"] = Answer(body=odd)
    page = open_page(site, "#/one/0")
    said = until(page, "document.querySelector('[role=alert]')?.textContent")
    assert (
        said == "Feature 0 in data/one/features/00000.json is not as sae-runtime browse writes it; make the site again."
    )


def test_neighbouring_shard_is_fetched_ahead(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/7")
    shown(page)
    page.wait_for_timeout(200)
    assert "data/one/features/00002.json" in "".join(open_page.requests(page))
