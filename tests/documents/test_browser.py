"""docs/guides/browser.md runs from top to bottom, with a tiny model and texts of Python's documentation."""

from pathlib import Path

from page_stages import lay, paragraphs
from walked_pages import walk


def test_the_page_runs(tmp_path: Path) -> None:
    lay(tmp_path, my_model="encoder", first="sae", second="second-sae")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "csv.txt").write_text("\n\n".join(paragraphs(["csv"])))
    walk("docs/guides/browser.md", tmp_path, environment={"BROWSER": "true"})
