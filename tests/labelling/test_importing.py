"""Labels of other tools' files come into labels.jsonl beside what people gave."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_store import feature, write_store

from sae_runtime.bundle.labels import FILE, read_labels, write_labels
from sae_runtime.labelling.importing import Imported, import_labels
from sae_runtime.labelling.target import Target, find_target

Write = Callable[..., Path]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """An SAE of 16,384 features at layer 6 of GPT-2 small."""
    (tmp_path / "sae").mkdir()
    return Target(folder=tmp_path / "sae", d_sae=16384, model="openai-community/gpt2", hook="blocks.6.hook_resid_pre")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(*records: dict[str, Any], name: str = "a.jsonl") -> Path:
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return tmp_path / name

    return lines


def lines_of(target: Target) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (target.folder / FILE).read_text(encoding="utf-8").splitlines()]


def test_labels_are_written_with_their_source(target: Target, write: Write) -> None:
    one = {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "12", "description": "files"}
    done = import_labels(target, write(one | {"explanationModelName": "gpt-4o"}, one | {"index": "3", "score": 0.5}))
    assert done == Imported(labels=2, written=2)
    common = {"label": "files", "source": "neuronpedia"}
    assert lines_of(target) == [
        {"feature": 3, **common, "score": 0.5},
        {"feature": 12, **common, "explainer": "gpt-4o"},
    ]


def test_what_people_gave_stays_unless_asked(target: Target, write: Write) -> None:
    mine = '{"feature": 1, "label": "mine", "author": "A. Reader"}\n'
    (target.folder / FILE).write_text(mine)
    theirs = write({"feature": 1, "label": "theirs"}, {"feature": 2, "label": "theirs"})
    newer = write({"feature": 1, "label": "newer"}, {"feature": 2, "label": "newer"}, name="b.jsonl")
    assert import_labels(target, theirs) == Imported(labels=2, written=1, given=1)
    assert (target.folder / FILE).read_text().startswith(mine)
    assert import_labels(target, newer) == Imported(labels=2, written=0, given=1, earlier=1)
    assert import_labels(target, newer, replace="imported") == Imported(labels=2, written=1, given=1)
    assert [line["label"] for line in lines_of(target)] == ["mine", "newer"]
    assert import_labels(target, newer, replace="all") == Imported(labels=2, written=1)
    assert [line["source"] for line in lines_of(target)] == ["b.jsonl", "b.jsonl"]


def test_an_import_that_changes_nothing_writes_nothing(target: Target, write: Write) -> None:
    (target.folder / FILE).write_text('{"label": "same", "feature": 1}\n\n')  # as a person may write it
    assert import_labels(target, write({"feature": 1, "label": " same "})) == Imported(labels=1, written=0)
    assert (target.folder / FILE).read_text() == '{"label": "same", "feature": 1}\n\n'


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [([None, None], "0"), ([0.1, 0.9], "1"), ([0.9, 0.1], "0"), ([None, 0.1], "1"), ([0.1, None], "0"), ([1, 1], "0")],
)
def test_the_highest_score_wins_and_else_the_first(
    scores: list[float | None], chosen: str, target: Target, write: Write
) -> None:
    done = import_labels(
        target, write(*({"index": 5, "description": str(n), "score": score} for n, score in enumerate(scores)))
    )
    assert done.several == 1
    assert read_labels(target.folder, target.d_sae) == {5: chosen}


def test_the_same_explanation_twice_is_not_several(target: Target, write: Write) -> None:
    assert import_labels(target, write(*2 * [{"index": 5, "description": "a"}])).several == 0


def test_messy_texts_become_labels(target: Target, write: Write) -> None:
    texts = {
        1: "two\nlines\tand\u2028more",
        2: "<b>HTML</b> &amp; code",
        3: "x" * 5000,
        4: " \n\x00 ",
        5: "bell\x07\x1b[2Jred",
        6: "half \ud800 of a character",
        7: "文件",
        8: "e\u0301",
        11: "\u0958" * 900,  # two characters each in NFC
        9: "",
        10: None,
    }
    done = import_labels(target, write(*({"index": n, "description": text} for n, text in texts.items())))
    assert (done.written, done.shortened, done.empty) == (8, 2, 3)
    assert read_labels(target.folder, target.d_sae) == {
        1: "two lines and more",
        2: "<b>HTML</b> &amp; code",
        3: "x" * 999 + "…",
        5: "bell [2Jred",
        6: "half of a character",
        7: "文件",
        8: "é",
        11: "\u0915\u093c" * 499 + "\u0915…",
    }


@pytest.mark.parametrize(
    "record",
    [
        {"modelId": "gemma-2-2b"},
        {"layer": "6-res-32k"},
        {"layer": "12-res-jb"},
        {"layer": "6-gemmascope-res-1m"},
        {"index": "16384"},
    ],
)
def test_explanations_of_another_sae_are_refused_unless_asked(
    record: dict[str, str], target: Target, write: Write
) -> None:
    path = write({"modelId": "gpt2-small", "layer": "6-res-16k", "index": "1", "description": "a"} | record)
    with pytest.raises(ValueError, match="--any-source") as refusal:
        import_labels(target, path)
    assert "\n" not in str(refusal.value)
    assert not (target.folder / FILE).exists()
    if "index" not in record:
        assert import_labels(target, path, any_source=True).written == 1
        return
    more = write({"index": 16384, "description": "a"}, {"index": 16383, "description": "b"}, name="b.jsonl")
    assert import_labels(target, more, any_source=True) == Imported(labels=1, written=1, beyond=1)
    with pytest.raises(ValueError, match="explains no feature from 0 to 16383"):
        import_labels(target, path, any_source=True)


@pytest.mark.parametrize(
    ("model", "place", "warned"),
    [
        ("gpt2-small", "6-res-16k", False),
        ("GPT2", "5-res-jb", False),  # the output of one layer is the input of the next
        ("openai-community/gpt2", "6-att_16k-x", False),
        ("gpt2-medium", "6-res-jb", True),
        (None, None, False),
    ],
)
def test_what_may_fit_is_taken(
    model: str | None, place: str | None, warned: bool, target: Target, write: Write
) -> None:
    done = import_labels(target, write({"modelId": model, "layer": place, "index": "1", "description": "a"}))
    assert (done.written, bool(done.warnings)) == (1, warned)


def test_one_of_several_saes_must_be_chosen(target: Target, write: Write) -> None:
    path = write(*({"modelId": "gpt2", "layer": f"{n}-a", "index": n, "description": f"{n}"} for n in (5, 6, 7)))
    with pytest.raises(ValueError, match="explains 3 SAEs, gpt2/5-a, gpt2/6-a, gpt2/7-a; choose one by --source"):
        import_labels(target, path)
    with pytest.raises(ValueError, match="has no explanations of '8-a'"):
        import_labels(target, path, place="8-a")
    import_labels(target, path, place="gpt2/6-a")
    import_labels(target, path, place="7-a")
    assert read_labels(target.folder, target.d_sae) == {6: "6", 7: "7"}


def test_a_file_without_any_text_is_refused(target: Target, write: Write) -> None:
    with pytest.raises(ValueError, match="holds no explanation"):
        import_labels(target, write({"modelId": "gpt2", "index": "1", "frac_nonzero": 0.1}))


def test_labels_as_long_as_labels_may_be_are_read_back(tmp_path: Path, write: Write) -> None:
    (tmp_path / "sae").mkdir()
    target = Target(folder=tmp_path / "sae", d_sae=200, model=None, hook=None)
    import_labels(target, write(*({"index": n, "description": "😀" * 1000} for n in range(200))))
    assert len(read_labels(target.folder, target.d_sae)) == 200


@pytest.mark.parametrize("origin", ["a\nb\x1b[31m", "a" * 2000, "\ud800"])
def test_a_strange_source_leaves_a_store_readable(tmp_path: Path, write: Write, origin: str) -> None:
    from sae_runtime import open_store

    target = find_target(write_store(tmp_path / "store", [feature(), feature()]))
    record = {"feature": 1, "label": "cakes", "source": origin, "explainer": origin, "scores": [1e308, 1e308]}
    import_labels(target, write(record))
    [line] = lines_of(target)
    assert "score" not in line and 0 < len(line["source"]) <= 1000 and line["source"].isprintable()
    assert open_store(tmp_path / "store").feature("cakes").label_source == line["source"]
    written = json.dumps({"feature": 1, "label": "cakes", "source": origin})
    (tmp_path / "store" / FILE).write_text(written + "\n")
    assert open_store(tmp_path / "store").feature(1).label == "cakes"


def test_a_store_gets_labels(tmp_path: Path, write: Write) -> None:
    from sae_runtime import open_store

    target = find_target(write_store(tmp_path / "store", [feature(), feature()]))
    assert (target.d_sae, target.model) == (2, "gpt2")
    import_labels(target, write({"index": "1", "description": "cakes", "modelId": "gpt2-small"}))
    store = open_store(tmp_path / "store")
    assert (store.feature(1).label, store.feature("cakes").label_source) == ("cakes", "neuronpedia")


def test_a_bundle_gets_labels_and_keeps_those_of_people(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    bundle = shutil.copytree(bundle_of("mutual"), tmp_path / "bundle")
    write_labels(bundle, {3: "mine"})
    (tmp_path / "a.csv").write_text("feature,label\n3,theirs\n4,theirs\n")
    import_labels(find_target(bundle), tmp_path / "a.csv")
    assert read_labels(bundle) == {3: "mine", 4: "theirs"}
    assert "bundle of one SAE" in str(pytest.raises(ValueError, find_target, bundle, "name").value)
    (tmp_path / "empty").mkdir()
    assert "is no store, bundle or" in str(pytest.raises(ValueError, find_target, tmp_path / "empty").value)
    assert "on the Hub" in str(pytest.raises(ValueError, find_target, "hf://owner/name").value)
