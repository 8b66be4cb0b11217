"""docs/guides/steering.md runs from top to bottom, with tiny models of its words."""

from pathlib import Path

import page_stages
import pytest
from walked_pages import walk


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    words = page_stages.words("guides/steering.md")
    page_stages.encoder(tmp_path / "my-model", words)
    page_stages.writer(tmp_path / "my-writer", words)
    page_stages.random_bundle(tmp_path / "my-sae", page_stages.ENCODER_HOOK)
    sae = page_stages.random_bundle(tmp_path / "writer-sae", page_stages.WRITER_HOOK)
    page_stages.deploy(tmp_path / "my-writer", [page_stages.Splice(bundle=sae)], tmp_path / "writer")
    return tmp_path


def test_the_page_runs(stage: Path) -> None:
    walk("docs/guides/steering.md", stage)
