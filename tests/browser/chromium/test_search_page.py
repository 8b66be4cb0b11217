"""Search by label, token and number while somebody types, and for features like another one."""

from pathlib import Path
from typing import Any

import pytest
from made_site import feature, write_site
from shown_page import shown
from watched_pages import Pages, until

HOSTILE = "<img src=x onerror=window.pwned=1>"
ROWS: list[dict[str, Any]] = [
    {"label": "words about cake"},
    {"label": "cakes and bread"},
    {"label": None, "tokens": [["cake", 5, 2.0], ["Crème", 1, 1.0]]},
    {"label": None, "tokens": [["pancakes", 5, 2.0]], "max": 9.0},
    {"label": "CAKE after a crème", "max": 3.0},
    {"label": None, "tokens": [["x", 1, 1.0]], "density": 0.0, "count": 0, "max": 0.0},
    {"label": "number 3 here", "density": 0.2, "max": 5.0},
    {"label": HOSTILE, "tokens": [[HOSTILE, 1, 1.0]]},
    {"label": None, "tokens": []},
]


def listed(page: Any, expected: list[int]) -> None:
    script = "() => [...document.querySelectorAll('.results a.feature .id')].map((one) => Number(one.textContent))"
    until(page, f"(want) => String(({script})()) === String(want)", expected, seconds=5)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site", {"one": [feature(i, **({"tokens": []} | row)) for i, row in enumerate(ROWS)]})


QUERIES = {
    "cake": [0, 4, 1, 2, 3],  # whole words of labels, their parts, whole tokens, their parts
    "CÀKE": [0, 4, 1, 2, 3],
    "creme": [4, 2],
    "cake creme": [4, 2],
    "cake nothing": [],
    "3": [3, 6],  # the number itself, then the label with a 3
    "#6": [6],
    "99": [],
}


def test_queries(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one")
    shown(page)
    for query, features in QUERIES.items():
        page.fill("#query", query)
        until(
            page, "(query) => document.querySelector('[role=status].note')?.textContent.includes(`“${query}”`)", query
        )
        listed(page, features)


def test_search_without_a_result_leads_on(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/search?q=zz&density=-0.0001")
    shown(page)
    listed(page, [])
    expected = (
        "No feature for “zz”. Labels and top tokens are searched. Try fewer letters, or any density, or dead ones too."
    )
    until(page, "(said) => document.querySelector('[role=status].note').textContent === said", expected)


def test_results_come_while_somebody_types(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one")
    shown(page)
    page.keyboard.press("/")
    page.keyboard.type("cak")
    listed(page, [0, 1, 4, 3, 2])
    page.keyboard.type("es")
    listed(page, [1, 3])
    assert page.evaluate("location.hash") == "#/one/search?q=cakes"
    assert page.evaluate("document.activeElement.id") == "query", "the page did not take the focus"
    assert page.inner_text("mark") == "cakes"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "1 cakes and bread"
    page.keyboard.press("Enter")
    shown(page, "#/one/1")
    page.go_back()
    shown(page, "#/one/search?q=cakes")
    listed(page, [1, 3])
    page.go_back()
    shown(page, "#/one")


def test_number_and_enter_open_the_feature(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one")
    shown(page)
    page.fill("#query", "6")
    page.press("#query", "Enter")
    shown(page, "#/one/6")
    page.fill("#query", "bread")
    page.press("#query", "Enter")
    until(page, "document.activeElement.textContent === '1 cakes and bread'")


def test_results_by_arrow_keys(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/search?q=cake")
    listed(page, [0, 4, 1, 2, 3])
    page.focus("#query")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.querySelector('.id').textContent") == "4"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "query"


def test_all_features_sorted_and_filtered(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/search")
    listed(page, [3, 6, 0, 1, 2, 7, 8, 4])
    page.select_option("text=Sort by", "density")
    listed(page, [6, 0, 1, 2, 3, 4, 7, 8])
    page.select_option("text=Sort by", "number")
    page.check("text=dead ones too")
    listed(page, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    page.select_option(".filters label:nth-of-type(2) select", "0.01-")
    listed(page, [0, 1, 2, 3, 4, 6, 7, 8])
    assert page.evaluate("location.hash") == "#/one/search?order=number&dead=1&density=0.01-"
    page.reload()
    listed(page, [0, 1, 2, 3, 4, 6, 7, 8])


def test_many_features_are_shown_in_parts(open_page: Pages, tmp_path: Path) -> None:
    page = open_page(write_site(tmp_path / "site", {"one": [feature(i) for i in range(120)]}), "#/one/search?q=label")
    listed(page, list(range(50)))
    page.click("text=Show more of 120")
    listed(page, list(range(100)))


def test_features_like_another(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/4")
    shown(page)
    page.click("text=Like this feature")
    shown(page, "#/one/search?like=4")
    listed(page, [0, 2, 1])
    rows = [one.split("\t")[-2:] for one in page.locator(".results tbody tr").all_inner_texts()]
    assert rows == [["0.5", "–"], ["–", "0.5"], ["0.25", "–"]]


def test_escape_leaves_the_search_for_the_keys_of_pages(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/1")
    shown(page)
    page.keyboard.press("/")
    page.keyboard.type("cak")
    listed(page, [0, 1, 4, 3, 2])
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") != "query" and page.input_value("#query") == "cak"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_hostile_names_are_text(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/search?q=onerror")
    listed(page, [7])
    assert page.locator("main img").count() == 0


def test_only_the_last_search_is_shown(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/search?q=cake")
    listed(page, [0, 4, 1, 2, 3])
    for query in ("number", "bread", "words"):
        page.evaluate("(query) => { location.hash = `#/one/search?q=${query}`; }", query)
    listed(page, [0])
    page.wait_for_timeout(200)
    listed(page, [0])
