"""docs/reference/reliability.md runs, with a small SAE."""

import shutil
from collections.abc import Callable
from pathlib import Path

from walked_pages import walk


def test_the_page_runs(tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    shutil.copytree(bundle_of("mutual", 512), tmp_path / "my-sae")
    walk("docs/reference/reliability.md", tmp_path)
