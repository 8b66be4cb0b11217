"""docs/guides/steering.md runs from top to bottom, with tiny models of its words."""

from pathlib import Path

from page_stages import lay
from walked_pages import walk


def test_the_page_runs(tmp_path: Path) -> None:
    lay(
        tmp_path, my_model="encoder", my_sae="sae", my_writer="writer", writer_sae="writer-sae", writer="language-model"
    )
    walk("docs/guides/steering.md", tmp_path)
