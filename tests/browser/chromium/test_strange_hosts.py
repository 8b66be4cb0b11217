"""A site works from any static host, and says a sentence where a file is missing, cut, broken, slow or another's."""

import threading
from pathlib import Path

import pytest
from made_site import feature, write_site
from site_host import Answer
from watched_pages import Pages, until

SHOWN = "() => document.querySelector('main h1') && document.title !== 'Features'"
# A sentence about a file stands in an alert, or in the status of a list.
SAID = """() => [...document.querySelectorAll("main [role=alert], main [role=status]")].map((one) => one.textContent)
  .find((text) => /[.?]$/.test(text) && /json|SAE/.test(text))"""
HEADING = "(title) => document.querySelector('main h1')?.textContent.startsWith(title)"
PAGES = {"#/one/1": "1 label", "#/one": "one", "#/one/5": "5 label", "#/one/search?q=cake": "", "#/two/3": "3 label"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    return write_site(folder, {name: [feature(number) for number in range(10)] for name in ("one", "two")})


@pytest.mark.parametrize("plain", [False, True], ids=["usual types", "octet-stream and no charset"])
@pytest.mark.parametrize("prefix", ["/", "/x/y/site/", "/with%20blank/"])
def test_site_below_a_path(open_page: Pages, site: Path, prefix: str, plain: bool) -> None:
    prefix = prefix.replace("%20", " ")
    page = open_page(site, "#/", prefix=prefix, plain=plain)
    for route, title in PAGES.items():
        page.evaluate("(to) => { location.hash = to; }", route)
        until(page, HEADING, title)
    host = open_page.host(site, prefix, plain=plain)
    assert "data/one/features/00001.json" in "".join(host.asked)


BROKEN = {
    "site.json": "#/",
    "data/one/overview.json": "#/one",
    "data/one/features/00001.json": "#/one/5",
    "data/one/names/0000.json": "#/one/search?q=label",
}
FAULTS = {
    "missing": Answer(status=404, body=b"no"),
    "error of the server": Answer(status=500, body=b"<h1>Internal Server Error</h1>"),
    "cut JSON": Answer(body=b'{"first": 4, "features": [{"feature": 4, "lab'),
    "empty": Answer(body=b""),
    "a page in its place": Answer(body=b"<!doctype html><title>Log in</title>", type="text/html"),
    "null": Answer(body=b"null"),
    "a number": Answer(body=b"7"),
    "a list": Answer(body=b"[1, 2]"),
    "an object of nothing": Answer(body=b"{}"),
    "invalid UTF-8": Answer(body=b'{"first": 4, "features": ["\xff\xfe"]}'),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("path", BROKEN)
def test_broken_file_is_a_sentence(open_page: Pages, site: Path, path: str, fault: str) -> None:
    open_page.host(site).answers[path] = FAULTS[fault]
    refused = [r"status: (404|500)", r"console: error: Failed to load resource"]
    page = open_page(site, BROKEN[path], expected=refused if FAULTS[fault].status != 200 else ())
    said = until(page, SAID, seconds=5)
    assert path in said and not any(word in said for word in ("undefined", "TypeError", "NaN", "reading '")), said


@pytest.mark.parametrize("path", BROKEN)
def test_cut_answer_is_a_sentence(open_page: Pages, site: Path, path: str) -> None:
    open_page.host(site).answers[path] = Answer(cut=20)
    page = open_page(site, BROKEN[path], expected=["console: error: Failed to load resource"])
    assert path in until(page, SAID, seconds=5)


def test_slow_file_shows_that_it_comes_and_another_page_may_be_opened(open_page: Pages, site: Path) -> None:
    late = threading.Event()
    open_page.host(site).answers["data/one/features/00001.json"] = Answer(wait=late)
    page = open_page(site, "#/one/5")
    until(page, "() => document.querySelector('main').textContent.includes('Loading')")
    page.evaluate("location.hash = '#/one/1'")
    until(page, "() => document.querySelector('main h1')?.textContent.includes('1')")
    late.set()
    page.wait_for_timeout(300)
    assert "label 1" in page.inner_text("main h1"), "the page that came late stays away"
    page.evaluate("location.hash = '#/one/5'")
    until(page, "() => document.querySelector('main h1')?.textContent.includes('5')")


def test_file_that_failed_may_come_later(open_page: Pages, site: Path) -> None:
    host = open_page.host(site)
    host.answers["data/one/features/00001.json"] = Answer(status=503, body=b"")
    page = open_page(site, "#/one/5", expected=["status: 503", "Failed to load resource"])
    until(page, SAID)
    host.answers.clear()
    page.evaluate("location.hash = '#/one/6'")
    until(page, "() => document.querySelector('main h1')?.textContent.includes('6')")


def test_host_that_stops_is_a_sentence(open_page: Pages, site: Path) -> None:
    page = open_page(site, "#/one/1")
    until(page, SHOWN)
    page.context.set_offline(True)
    page.evaluate("location.hash = '#/one/9'")
    assert "did not come" in until(page, SAID)
    page.context.set_offline(False)
    open_page.take(page)
