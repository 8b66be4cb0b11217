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
from sae_runtime.demo.chat.building import step
from sae_runtime.demo.chat.choosing import Trial, best, sets, trials
from sae_runtime.demo.chat.questions import TO_CHOOSE, TO_MEASURE
from sae_runtime.demo.chat.words import distinct_2, named
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
    monkeypatch.setattr("sae_runtime.demo.chat.choosing.LEAST", 0.0)
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


def test_no_question_that_chooses_is_one_that_counts() -> None:
    assert len(set(TO_CHOOSE)) == len(set(TO_MEASURE)) == 20 and not set(TO_CHOOSE) & set(TO_MEASURE)
    assert not any(named(question) for question in TO_CHOOSE + TO_MEASURE)


def test_the_trial_with_most_words_wins_among_those_that_stay_varied() -> None:
    def ask(feature: int | None, times: float) -> list[str]:
        if feature is None:
            return ["one two three four", "five six seven eight"]
        return ["online online online online"] * 2 if times > 1 else ["go online for the tea", "an egg"]

    made = trials([(4, 0.9), (6, 0.7)], (1.0, 2.0), ask)
    assert [(one.feature, one.times, one.naming) for one in made] == [(4, 1, 1), (4, 2, 2), (6, 1, 1), (6, 2, 2)]
    assert made[1].distinct == pytest.approx(1 / 6) and best(made) == made[0]
    with pytest.raises(ValueError, match="no trial's answers have"):
        best([Trial(1, 1.0, 0.9, 20, 0.5)])


def test_paragraphs_are_parted_by_the_concepts_words(tmp_path: Path) -> None:
    filler = "a paragraph of many ordinary words that says nothing else at all"
    texts = [f"{filler} online website", f"{filler}\n\n{filler} of the web\n\nshort online web", "a = b; " * 20]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert sets(path) == ([f"{filler} online website"], [filler])


def test_a_step_that_was_killed_is_made_again_and_one_that_is_there_is_not(tmp_path: Path) -> None:
    def dies(part: Path) -> None:
        part.mkdir()
        (part / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(tmp_path / "made", dies)
    assert not (tmp_path / "made").exists()
    step(tmp_path / "made", lambda part: part.mkdir())
    assert list((tmp_path / "made").iterdir()) == []
    step(tmp_path / "made", dies)
