"""The overview says at a glance what an SAE is, loads few files, and leads on."""

from pathlib import Path
from typing import Any

import pytest
from made_site import feature, write_site
from shown_page import shown
from watched_pages import Pages, until

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>\u202e'
LAW = {"rank": [1, 2, 3, 4], "value": [0.2, 0.1, 0.05, 0.02], "what": "density = c (rank + 1)^-1, fitted"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of two SAEs."""
    rows = [feature(number) for number in range(10)]
    return write_site(tmp_path / "site", {"one": rows, "two": rows[:4]}, overviews={"law": LAW})


def test_overview_says_what_the_sae_is(open_page: Pages, site: Path) -> None:
    page = open_page(site)
    shown(page)
    said = page.inner_text("main")
    for expected in (
        "10 features of gpt2 at h.6",
        "900 tokens of 9 documents",
        "token, k 3",
        "FVU 0.2",
        "a.txt",
        "MIT",
    ):
        assert expected in said, said
    assert "promoted tokens: none" in said and "density = c (rank + 1)^-1, fitted" in said
    assert page.title() == "one · A site"
    names = page.eval_on_selector_all("svg title", "(titles) => titles.map((one) => one.textContent)")
    assert names == ["Density by rank", "Features by density", "Active features a token"]
    page.click(".cards a")
    shown(page, "#/one/1")
    assert page.inner_text("h1") == "1 label 1"


def test_overview_loads_nothing_that_it_does_not_show(open_page: Pages, tmp_path: Path) -> None:
    page = open_page(write_site(tmp_path / "site", {"one": [feature(number) for number in range(10)]}))
    shown(page)
    page.wait_for_timeout(300)
    data = [one for one in open_page.requests(page) if ".json" in one or "vendor" in one or "/model" in one]
    assert sorted(one.rpartition("/")[2] for one in data) == ["overview.json", "serve.json", "site.json"]
    modules = [one for one in open_page.requests(page) if one.endswith(".js")]
    assert not [one for one in modules if "search" in one or "feature" in one or "try" in one], modules


def test_saes_are_compared_and_chosen(open_page: Pages, site: Path) -> None:
    page = open_page(site)
    until(page, "document.querySelectorAll('main table tbody tr').length === 2")
    assert page.locator("main table tbody tr").nth(1).inner_text().split("\t")[:3] == ["two", "4", "1"]
    assert "active a token" in page.locator("main table thead").inner_text()
    page.select_option("#sae", "two")
    shown(page, "#/two")
    assert page.inner_text("h1") == "two"


def test_starter_without_label_is_named_by_its_tokens(open_page: Pages, tmp_path: Path) -> None:
    names: list[dict[str, Any]] = [{"label": None, "tokens": ["up", "lookup"]}, {"label": "dates", "tokens": ["may"]}]
    starters = [
        {"feature": number, "density": 0.1, "max": 1.0, "text": [["a", 1.0]], "peak": 0, **named}
        for number, named in enumerate(names)
    ]
    rows = [feature(number) for number in range(4)]
    page = open_page(write_site(tmp_path / "site", {"one": rows}, overviews={"starters": starters}))
    shown(page)
    assert page.locator(".card h3").all_inner_texts() == ["0 up · lookup", "1 dates"]


def test_pictures_are_read_by_pointer_and_keys(open_page: Pages, site: Path) -> None:
    page = open_page(site)
    until(page, "document.querySelectorAll('svg.chart .line').length > 0")
    figure = page.locator("figure", has_text="Density by rank")
    box = figure.locator(".canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
    assert figure.locator(".reading").inner_text() == "Rank 4: active on 0.1 % of the tokens; the law says 2 %."
    figure.locator("svg").focus()
    page.keyboard.press("Home")
    assert figure.locator(".reading").inner_text() == "Rank 1: active on 30 % of the tokens; the law says 20 %."
    page.keyboard.press("ArrowRight")
    assert "Rank 2" in figure.locator(".reading").inner_text()
    assert page.evaluate("location.hash") == "", "an arrow in a picture does not leave the page"


def test_words_of_pictures_stand_inside_and_counts_are_whole(open_page: Pages, tmp_path: Path) -> None:
    told = {"histogram_of_density": {"edges": [-2.0, -1.0, 0.0], "counts": [1, 2]}, "active": [0, 1, 2]}
    rows = [feature(number) for number in range(4)]
    page = open_page(write_site(tmp_path / "site", {"one": rows}, overviews=told))
    until(page, "document.querySelectorAll('svg.chart .bar').length > 0")
    outside = """(all) => all.filter((one) => {
        const inner = one.getBoundingClientRect(), outer = one.ownerSVGElement.getBoundingClientRect();
        return inner.left < outer.left || inner.right > outer.right + 0.5;
    }).map((one) => one.textContent)"""
    assert page.eval_on_selector_all("svg.chart text", outside) == []
    words = page.eval_on_selector_all("svg.chart text", "(all) => all.map((one) => one.textContent)")
    assert "100 %" in words and not {"0.5", "1.5"} & set(words), words


def test_picture_is_saved_as_svg(open_page: Pages, site: Path) -> None:
    page = open_page(site, downloads=True)
    until(page, "document.querySelectorAll('svg.chart .line').length > 0")
    with page.expect_download() as download:
        page.click("button[aria-label='Save the picture Density by rank as SVG']")
    saved = Path(download.value.path()).read_text()
    assert download.value.suggested_filename == "density-by-rank.svg"
    assert saved.startswith("<svg") and "--accent:" in saved and "<path" in saved


def test_hostile_names_are_text(open_page: Pages, tmp_path: Path) -> None:
    told: dict[str, Any] = {key: HOSTILE for key in ("name", "model", "hook", "allocation")}
    told |= {"left_out": [HOSTILE], "licences": [HOSTILE], "texts": [{"file": HOSTILE, "documents": 1}]}
    told |= {"law": LAW | {"what": HOSTILE}}
    starter = {"feature": 1, "label": HOSTILE, "density": 0.1, "max": 1.0, "text": [HOSTILE, [HOSTILE, 1.0]]}
    rows = [feature(number) for number in range(4)]
    page = open_page(
        write_site(tmp_path / "site", {"one": rows}, overviews={**told, "starters": [starter]}, title=HOSTILE)
    )
    shown(page)
    assert page.inner_text("main").count("onerror") == 14
    assert page.locator("main img").count() == 0
    assert "\\u202e" in page.inner_text("h1")


def test_file_opened_by_itself_says_how_to_open_it(chromium: Any, site: Path) -> None:
    page = chromium.new_page()  # the watch over pages lets no file through
    page.goto(f"file://{site}/index.html")
    until(page, "getComputedStyle(document.getElementById('closed')).visibility === 'visible'")
    assert "sae-runtime browse SITE --open" in page.inner_text("main")
    page.close()


@pytest.mark.parametrize("route", ["#/", "#/one/1", "#/one/search?q=cake"])
def test_nothing_is_wider_than_a_phone(open_page: Pages, site: Path, route: str) -> None:
    page = open_page(site, route, width=390, height=844)
    shown(page)
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
