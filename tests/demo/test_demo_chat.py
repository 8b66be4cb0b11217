"""The demo with a language model, over a tiny one: what it asks, measures, keeps and writes."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed_model import D_SAE, deploy
from running import running

from sae_runtime.demo import chat
from sae_runtime.demo.chat import asking
from sae_runtime.demo.chat.questions import TO_MEASURE
from sae_runtime.demo.chat.words import distinct_2
from sae_runtime.serve.plane import Plane

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPLATE = "{% for message in messages %}w{{ message.content | length % 20 }} {% endfor %}w1"


@pytest.fixture
def out(tmp_path: Path, bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the demo, run with a tiny model that is served in this process."""
    model = deploy(tmp_path / "model", "gpt2", {"bundle": bundle_of("mutual", D_SAE, 4)})
    (model / "chat_template.jinja").write_text(TEMPLATE)

    @contextlib.contextmanager
    def serving(model: Path, log: Path) -> Iterator[str]:
        with running(Plane.open([f"{asking.NAME}={model}"])) as address:
            yield address

    monkeypatch.setattr(asking, "serving", serving)

    def edit(feature: int | None, times: float) -> dict[str, object]:  # the tiny SAE has no largest activations
        return {} if feature is None else {"edits": [{"feature": feature, "add": 120 * times}], "gate": "prompt"}

    monkeypatch.setattr(asking, "edit", edit)
    monkeypatch.setattr(asking, "TOKENS", 8)
    monkeypatch.setattr(chat, "build", lambda *_: model)
    monkeypatch.setattr(chat, "candidates", lambda *_: [(3, 0.9), (11, 0.8)])
    monkeypatch.setattr(chat, "STRENGTHS", (0.5,))
    monkeypatch.setattr(chat, "best", lambda made, questions: made[0])  # the tiny model never names the concept
    return tmp_path / "out"


def test_the_files_hold_every_question_and_figures_of_the_answers_in_them(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.run(tmp_path, tmp_path, out)
    told = (out / "answers.md").read_text()
    assert [line[3:] for line in told.splitlines() if line.startswith("## ")] == list(TO_MEASURE)
    plain = [line.removeprefix("Plain: ") for line in told.splitlines() if line.startswith("Plain: ")]
    steered = [line.partition("): ")[2] for line in told.splitlines() if line.startswith("Steered (")]
    assert len(plain) == len(steered) == 20 and plain != steered
    figures = json.loads((out / "figures.json").read_text())
    assert figures["plain distinct-2"] == round(distinct_2(plain), 4) and figures["questions"] == 20
    assert figures["steered distinct-2"] == round(distinct_2(steered), 4)
    assert "features of the tokens of a prompt" in capsys.readouterr().out
    chosen = json.loads((out / "chosen.json").read_text())
    assert figures["sae"]["edits"] == [{"feature": chosen["chosen"]["feature"], "add": 60.0}]
    assert len(chosen["trials"]) == 2
    chosen["chosen"]["feature"] = 5  # a second run asks again with what was chosen
    (out / "chosen.json").write_text(json.dumps(chosen))
    chat.run(tmp_path, tmp_path, out)
    assert json.loads((out / "figures.json").read_text())["sae"]["edits"][0]["feature"] == 5
