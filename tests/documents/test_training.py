"""docs/guides/training.md runs from top to bottom, with the real all-MiniLM-L6-v2 and a text that Python brings."""

from pathlib import Path

from walked_pages import walk


def test_the_guide_runs(tmp_path: Path) -> None:
    walk("docs/guides/training.md", tmp_path)
