"""docs/index.md: its five minutes run from an empty folder, with the real all-MiniLM-L6-v2."""

from pathlib import Path

from walked_pages import walk


def test_the_five_minutes_run(tmp_path: Path) -> None:
    walk("docs/index.md", tmp_path)
