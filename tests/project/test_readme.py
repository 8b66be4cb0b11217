"""The README tells the truth: its blocks run from top to bottom and print what it says."""

import shutil
import tomllib
from pathlib import Path

from document_blocks import ROOT
from walked_pages import walk

README = (ROOT / "README.md").read_text()


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a checkout, where docs/guides holds the text of its commands; what it prints is compared letter by letter."""
    shutil.copytree(ROOT / "docs/guides", tmp_path / "docs/guides")
    walk("README.md", tmp_path, exact=True)
    made = {"minilm", "model", "acts", "saes", "own", "features", "store", "site"}
    assert made <= {path.name for path in tmp_path.iterdir()}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_its_wheel_has_the_version_that_is_built() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"sae_runtime-{version}-py3-none-any.whl" in README
