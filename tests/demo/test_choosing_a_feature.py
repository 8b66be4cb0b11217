"""The parts of the demo with a language model that need none: words, variety, the choice, steps that were killed."""

from pathlib import Path

import pytest

from sae_runtime.activations.stored import INDEX
from sae_runtime.demo.chat import building
from sae_runtime.demo.chat.building import step
from sae_runtime.demo.chat.choosing import Trial, best, trials
from sae_runtime.demo.chat.questions import TO_CHOOSE, TO_MEASURE
from sae_runtime.demo.chat.sentences import ABOUT, AGAINST
from sae_runtime.demo.chat.words import distinct_2, named
from sae_runtime.train import HarvestConfig


def test_words_are_whole_words_and_counted_once() -> None:
    assert named("E-mail me: EMAIL, e-mails.") == ["e-mail", "email", "e-mails"]
    assert named("Spider webs on a cobweb; the hostess linked a networked chain; an observer.") == []
    assert named("https://x.org/www") == ["https", "www"] and named("Online, online") == ["online"]


def test_distinct_2_counts_pairs_within_texts() -> None:
    assert distinct_2(["a b", "B c"]) == 1.0 and distinct_2(["a b c", "a b, d"]) == 0.75
    assert distinct_2([]) == distinct_2(["one", ""]) == 0.0


def test_sentences_part_the_concept_from_everything_else() -> None:
    assert len(set(ABOUT)) == len(ABOUT) == len(set(AGAINST)) == len(AGAINST)
    assert not any(named(text) for text in AGAINST)


def test_no_question_that_chooses_is_one_that_counts() -> None:
    assert len(set(TO_CHOOSE)) == 20 and len(set(TO_MEASURE)) == 20 and not set(TO_CHOOSE) & set(TO_MEASURE)
    assert not any(named(question) for question in TO_CHOOSE + TO_MEASURE)


def test_the_most_varied_trial_wins_among_those_that_name_the_concept_often() -> None:
    def ask(feature: int | None, times: float) -> list[str]:
        if feature is None:
            return ["one two three four", "five six seven eight"]
        return ["online online online online"] * 2 if times > 1 else ["go online for the tea", "an egg"]

    made = trials([(4, 0.9), (6, 0.7)], (1.0, 2.0), ask)
    assert [(one.feature, one.times, one.naming) for one in made] == [(4, 1, 1), (4, 2, 2), (6, 1, 1), (6, 2, 2)]
    assert made[1].distinct == pytest.approx(1 / 6) and best(made, 2) == made[1]
    often = [Trial(1, 1.5, 0.9, 13, 0.82), Trial(1, 1.9, 0.9, 12, 0.86), Trial(1, 2.1, 0.9, 17, 0.79)]
    assert best([*often, Trial(2, 1.5, 0.7, 0, 0.99)], 20) == often[1]
    assert best([Trial(1, 1.5, 0.9, 4, 0.7), Trial(2, 1.5, 0.7, 0, 0.99)], 20).feature == 1
    with pytest.raises(ValueError, match="^no edit makes an answer name the concept"):
        best([Trial(2, 1.5, 0.7, 0, 0.99)], 20)


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


def test_a_run_that_was_killed_in_the_fit_reads_the_rows_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(building, "open_activations", lambda path: called.append("open"))
    monkeypatch.setattr(building, "harvest", lambda *_, **__: called.append("harvest"))
    monkeypatch.setattr(building, "fit", lambda *_, **__: called.append("fit"))
    monkeypatch.setattr(building, "export", lambda path: called.append("export"))
    made = tmp_path / "activations"
    config = HarvestConfig(model="m", hook="h", text=(tmp_path,))
    for _ in range(2):
        building._fit(config, made, tmp_path / "sae")
        made.mkdir(exist_ok=True)
        (made / INDEX).touch()
    assert called == ["harvest", "fit", "export", "open", "fit", "export"]
