"""docs/guides/publishing.md runs, with a stand-in for the Hub that bundles and models are sent to and fetched from."""

import shutil
from pathlib import Path

import hub_stub
import pytest
from command_line import run
from page_stages import lay, paragraphs
from walked_pages import walk


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    lay(tmp_path, my_model="model", my_sae="sae")
    for name in ("mutual-k16", "mutual-k32"):
        shutil.copytree(tmp_path / "my-sae", tmp_path / "my-saes" / name)
    (tmp_path / "texts.txt").write_text("\n".join(paragraphs(["tarfile"])[:40]))
    for line in (
        ("extract", tmp_path / "my-model", "--text", tmp_path / "texts.txt", "-o", tmp_path / "features", "-q"),
        ("features", "build", tmp_path / "features", "-o", tmp_path / "store", "--sae", tmp_path / "my-sae", "-q"),
    ):
        result = run(*line)
        assert result.exit_code == 0, result.stderr
    return tmp_path


def test_the_page_runs(stage: Path, tmp_path: Path) -> None:
    with hub_stub.running() as hub:
        here = hub_stub.environment(hub, str(tmp_path / "hub"))
        walk("docs/guides/publishing.md", stage, marks=("needs the Hub",), environment=here)
        sent = hub.repositories
        assert set(sent) == {"me/my-sae", "me/my-saes", "me/my-model"} and sent["me/my-saes"].private
        assert {"layer.1/encode.onnx", "encode.onnx"} <= set(sent["me/my-sae"].files())
        assert sent["me/my-saes"].messages[-1] == "Two sizes of L0"
