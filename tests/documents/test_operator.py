"""docs/guides/operator.md runs from an empty folder, with the real all-MiniLM-L6-v2."""

from pathlib import Path

from walked_pages import walk


def test_the_tutorial_runs(tmp_path: Path) -> None:
    walk("docs/guides/operator.md", tmp_path)
