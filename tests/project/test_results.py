"""The list of results names every page of results, with a command and numbers that the page has."""

import re
from pathlib import Path

import pytest
from document_blocks import ROOT

RESULTS = ROOT / "docs/results"
PAGES = sorted(path for path in RESULTS.glob("*.md") if path.name != "index.md")
PARTS = {"chat_answers.md": "chat.md"}  # pages that another page's command writes


def rows() -> dict[str, list[str]]:
    """The cells of each row of the list, by the page that it links to."""
    text = (RESULTS / "index.md").read_text()
    found = re.findall(r"^\| \[[^\]]+\]\(([\w.]+)\) \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(found) == len({page for page, _ in found})
    return {page: cells.split(" | ") for page, cells in found}


def test_every_page_is_in_the_list() -> None:
    assert sorted(rows()) == [path.name for path in PAGES]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.stem))
def test_a_row_says_what_the_page_says(path: Path) -> None:
    _, number, command = rows()[path.name]
    text = path.read_text() + (RESULTS / PARTS.get(path.name, path.name)).read_text()
    listed = len(re.findall(r"^\|", path.read_text(), flags=re.MULTILINE)) - 2  # rows of the only table
    text += f"{path.read_text().count('| equal | equal |')} models, {listed} calls"
    given = re.findall(r"\d(?:[\d,]*\d)?(?:\.\d+)?(?:e-?\d+)?", number)
    assert given, "a row needs a number"
    assert [one for one in given if not re.search(rf"(?<![\d.,]){re.escape(one)}(?![\d]|[.,]\d)", text)] == []
    assert command.strip("`") in text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.stem))
def test_a_page_has_its_command_its_machine_and_its_day(path: Path) -> None:
    text = (RESULTS / PARTS.get(path.name, path.name)).read_text()
    prose = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    assert re.search(r"```bash\n(?:.*\n)*?.*(?:benchmarks/|make |tests/)", text), "it needs the command in a block"
    assert re.search(r"\bcores?\b|x86-64|\bCPUs?\b|\bGPUs?\b|H200", prose), "it needs the machine"
    assert re.search(r"2026-\d\d-\d\d|\b\d+ November 2026", prose), "it needs the day"
