"""The site of the documents builds without a warning, its links lead somewhere, and it loads nothing from elsewhere."""

import json
import re
from pathlib import Path

import pytest
from built_site import ROOT, BuiltSite, build
from references.addresses import addresses
from references.hook import PAGES, as_python_markdown, relinked, slug


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> BuiltSite:
    folder = tmp_path_factory.mktemp("site")
    said = build(folder)
    assert said == "", said
    return BuiltSite(folder)


def test_every_document_is_a_page(site: BuiltSite) -> None:
    documents = {str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(site.names) == documents | {page.replace(".md", ".html") for page in PAGES.values()} | {"404.html"}


def test_links_anchors_pictures_and_assets_exist(site: BuiltSite) -> None:
    assert sum(len(site.page(name).links) for name in site.names) > 1000
    assert [fault for name in site.names for fault in site.broken(name)] == []


def test_no_page_loads_anything_from_another_address(site: BuiltSite) -> None:
    assert [address for name in site.names for address in site.foreign(name)] == []
    assert not any("mermaid" in site.page(name).classes for name in site.names)  # the theme fetches its program
    sheets = [path.read_text() for path in site.folder.rglob("*.css")]
    assert [found for sheet in sheets for found in re.findall(r"url\(['\"]?(?:https?:)?//[^)]+\)", sheet)] == []


def test_pages_can_be_searched(site: BuiltSite) -> None:
    index = json.loads((site.folder / "search/search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert found >= {name for name in site.names if name != "404.html"}
    assert (site.folder / "search/search_index.js").is_file()  # for a site that is opened from the disk


def test_anchors_of_the_site_are_those_of_the_markdown_view() -> None:
    assert slug("What it costs: `k`, d_sae & more") == "what-it-costs-k-d_sae--more"


def test_links_out_of_the_folder_lead_to_pages_or_become_text() -> None:
    place = ROOT / "docs/guides/text.md"
    written = {
        "[a](../../README.md#install)": "[a](../index.md)",
        "[a](../../CHANGELOG.md)": "[a](../changelog.md)",
        "[a](../../benchmarks/text.py)": "a",
        "[a](corpus.md#b) [`c`](#d)": "[a](../guides/corpus.md#b) [`c`](#d)",
        "![a](../images/browser.png)": "![a](../images/browser.png)",
        "[a](https://b.org)": "[a](https://b.org)",
    }
    assert {text: relinked(text, place, "guides/text.md") for text in written} == written
    assert relinked("[a](docs/log.md)", ROOT / "CHANGELOG.md", "changelog.md") == "[a](log.md)"


def test_lists_are_written_as_python_markdown_reads_them() -> None:
    assert as_python_markdown("a:\n- b\n  c\n  - d\n") == "a:\n\n- b\n  c\n    - d\n"
    assert as_python_markdown("```text\na\n- b\n```\n") == "```text\na\n- b\n```\n"


def test_addresses_outside_are_found_in_links_alone() -> None:
    text = (
        "[a](https://a.org/b_c) <https://d.org>, `<https://e.org>`, <http://127.0.0.1:8080>\n```text\n<http://f>\n```"
    )
    assert addresses(text) == ["https://a.org/b_c", "https://d.org"]


def test_a_broken_site_is_noticed(tmp_path: Path) -> None:
    page = '<a href="b.html"></a><a href="#c"></a><img src="https://d.org/e.png"><a href="a.html#f"></a><p id="f">'
    (tmp_path / "a.html").write_text(page)
    made = BuiltSite(tmp_path)
    assert list(made.broken("a.html")) == ["a.html: b.html does not exist", "a.html: #c has no such anchor"]
    assert list(made.foreign("a.html")) == ["a.html: https://d.org/e.png"]
