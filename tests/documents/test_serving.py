"""docs/guides/serving.md runs from top to bottom, with tiny models of its words."""

from pathlib import Path

from page_stages import lay
from walked_pages import walk


def test_the_page_runs(tmp_path: Path) -> None:
    walk("docs/guides/serving.md", lay(tmp_path, sae="sae", model="model", smol="language-model"))
