"""The site of the documents in a real Chromium: from the disk, without a network, on a narrow screen too."""

from pathlib import Path
from typing import Any

import pytest
from built_site import build

PAGES = ("index.html", "guides/text.html", "reference/cli.html", "reference/api.html", "results/exported_models.html")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert (said := build(folder)) == "", said
    return folder


@pytest.fixture(scope="module")
def page(chromium: Any) -> Any:
    """A page that keeps what it asks for and what its console says."""
    page = chromium.new_context().new_page()
    page.seen = []
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("console", lambda message: page.seen.append(message.text) if message.type == "error" else None)
    return page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_stand_from_the_disk_and_fit(folder: Path, page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    for name in PAGES:
        page.seen.clear()
        page.goto((folder / name).as_uri())
        page.wait_for_selector("h1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert [one for one in page.seen if not one.startswith(("file://", "data:", "blob:"))] == [], name


def test_search_finds_a_command_without_a_server(folder: Path, page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    page.seen.clear()
    page.goto((folder / "index.html").as_uri())
    page.fill("input.md-search__input", "export-triton")
    page.wait_for_selector(".md-search-result__item a")
    found = page.eval_on_selector_all(".md-search-result__item a", "links => links.map((link) => link.href)")
    assert any("reference/cli.html" in address for address in found)
    assert [one for one in page.seen if not one.startswith(("file://", "data:", "blob:"))] == []
