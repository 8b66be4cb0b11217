"""The README's lines on text run, with tiny models in the place of real ones."""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from deployed_model import D_SAE, deploy

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


def test_lines_of_the_readme_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert "[CLS]" in printed(code, {})
