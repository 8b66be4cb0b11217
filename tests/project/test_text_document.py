"""The blocks of docs/guides/text.md and the README's lines on text run, with tiny models in the place of real ones."""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from deployed_model import D_SAE, deploy
from documents import blocks

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sae_runtime.deployed.notices.AssumedPoolingWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name, kind in (("model", "bert"), ("language-model", "gpt2")):
        deploy(folder / name, kind, {"bundle": bundle_of("mutual", D_SAE, 16)})
    return folder


def printed(code: str, names: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    return out.getvalue()


def test_blocks_of_the_document_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    said = [printed(code, names) for code in blocks("guides/text.md")]
    assert "150 features" in said[0] and said[1].startswith("[CLS] ")
    assert re.search(r"^\d+ (about|against) [\d.]+ \(", said[2], flags=re.MULTILINE)
    assert "still similar to itself: " in said[3] and "last_hidden_state" in said[4]
    assert said[5].strip().endswith(("length", "end"))


def test_lines_of_the_readme_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert "[CLS]" in printed(code, {})
