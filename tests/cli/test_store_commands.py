"""`features show`, `search`, `label` and `export` on a store, as a person at a terminal meets them."""

import json
from pathlib import Path

import click
import pytest
from command_line import misused, refused, run
from made_store import context, feature, never_active, token, write_store

from sae_runtime import open_store

EVIL = "\x1b[2J\u202efile\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "80")
    long = "word " * 40 + "and then open the file now " + "word " * 40
    contexts = [
        context("Open the file\nand read it.", "file", 4.0),
        context(long.strip(), "file", 3.0),
        context("a file on disk", "file", 1.0, band=1, licence=None, file=None, row=None),
    ]
    main = feature(
        contexts,
        top_tokens=[token("file", 8), token("files", 2)],
        neighbours=[{"feature": 1, "value": 0.7}],
        together=[{"feature": 2, "value": 0.3}],
    )
    evil = context(f"a {EVIL} b", EVIL.strip(), 1.0, file=f"{EVIL}.txt", licence=EVIL)
    return write_store(tmp_path / "store", [main, feature([evil], top_tokens=[token(EVIL)]), never_active()])


def test_a_feature_is_shown(store: Path) -> None:
    lines = run("features", "show", store, "0").stdout.splitlines()
    assert lines[0] == "feature 0: file, files (its top tokens)"
    assert lines[1] == "gpt2, blocks.6.hook_resid_pre; 3 features over 1,000 tokens"
    by_name = {line[:13].strip(): line[13:] for line in lines if line[:1].islower()}
    assert by_name["active on"] == "1 % of the tokens, 10"
    assert by_name["activations"] == "0 █▆▄▂ 4.00, mean 2.00"
    assert by_name["top tokens"] == "file 80 %, files 20 %"
    assert by_name["together"] == "2 0.30"
    assert by_name["logits"] == "not known: the bundle has none"
    assert "  4.00  Open the [[file]] and read it.                                 a.jsonl:7" in lines
    (cut,) = (line for line in lines if line.startswith("  3.00"))
    assert "…" in cut and "open the [[file]] now" in cut and len(cut) <= 80
    assert "band 2 of 2, 0.50 to 2.00: 5 in all" in lines
    assert by_name["sources"] == "data/a.jsonl (MIT), a source that is not named (licence not given)"
    assert all(len(line) <= 80 for line in lines)


def test_a_store_without_labels_leads_to_the_search(store: Path) -> None:
    assert "name the feature by its number, which features search finds" in refused("features", "show", store, "file")


def test_features_that_are_near_stand_apart_from_the_words_of_their_labels(tmp_path: Path) -> None:
    near = feature(neighbours=[{"feature": 1, "value": 0.7}, {"feature": 1, "value": 0.6}])
    store = write_store(tmp_path / "store", [near, feature(top_tokens=[token("a"), token("b")])])
    assert "nearest      1 a, b 0.70; 1 a, b 0.60" in run("features", "show", store, "0").stdout.splitlines()


def test_a_label_names_a_feature(store: Path) -> None:
    (store / "labels.jsonl").write_text('{"feature": 0, "label": "my files", "source": "delphi"}\n')
    assert run("features", "show", store, "my files").stdout.startswith("feature 0: my files (from delphi)\n")
    assert "the closest are 'my files'" in refused("features", "show", store, "files")
    assert "feature 3 does not exist" in refused("features", "show", store, "3")


def test_a_feature_that_is_never_active_is_shown(store: Path) -> None:
    lines = run("features", "show", store, "2").stdout.splitlines()
    assert (lines[0], lines[-1]) == ("feature 2 (no label)", "active on    none of 1,000 tokens")


def test_tokens_that_a_feature_promotes_are_shown(tmp_path: Path) -> None:
    logits = [{"token": 1, "text": " file", "logit": 0.25}, {"token": 2, "text": "\n", "logit": 0.125}]
    store = write_store(tmp_path / "store", [feature(promoted=logits, suppressed=[])])
    lines = run("features", "show", store, "0").stdout.splitlines()
    assert "promotes     ·file +0.25, \\n +0.12" in lines and "suppresses   none" in lines


def test_contexts_are_counted_by_band(store: Path) -> None:
    shown = run("features", "show", store, "0", "--contexts", "1").stdout
    assert ("[[file]] and read" in shown, "open the [[file]]" in shown, "a [[file]]" in shown) == (True, False, True)
    assert "[[" not in run("features", "show", store, "0", "--contexts", "0").stdout


def test_json_has_every_number(store: Path) -> None:
    one = json.loads(run("features", "show", store, "0", "--json").stdout)
    assert (one["feature"], one["label"], one["label_source"], one["max"]) == (0, "file, files", "top tokens", 4.0)
    assert one["histogram"] == {"edges": [0.0, 1.0, 2.0, 3.0, 4.0], "counts": [4, 3, 2, 1]}
    assert one["neighbours"] == [{"feature": 1, "cosine": pytest.approx(0.7)}]
    assert (one["promoted"], len(one["contexts"])) == (None, 3)
    assert one["contexts"][0]["values"] == [0.0, 0.0, 4.0, 0.0, 0.0, 0.0]
    assert one["contexts"][0]["licence"] == "MIT"


def test_nothing_of_a_text_moves_the_cursor(store: Path) -> None:
    for command in (("show", store, "1"), ("search", store, "file")):
        shown = run("features", *command).stdout
        assert not {"\x1b", "\u202e"} & set(shown)


def test_a_terminal_gets_shades(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_runtime.cli.features import feature_view

    monkeypatch.setattr(feature_view, "has_colour", lambda: True)
    opened = open_store(store)
    shown = "\n".join(feature_view.lines(opened, opened.feature(0), 3))
    assert "\x1b[38;2;0;0;0m" in shown and "[[" not in shown
    assert "Open the \x1b" in shown


def test_a_peak_that_is_a_part_of_a_character_is_marked(tmp_path: Path) -> None:
    row = context("a 😀 b", "😀", 2.0)
    row |= {"tokens": [1, 2, 3, 4], "begins": [0, 2, 2, 4], "ends": [1, 3, 3, 5], "values": [0.0, 1.0, 2.0, 0.0]}
    store = write_store(tmp_path / "store", [feature([row | {"peak": 2}])])
    assert "a [[😀]] b" in run("features", "show", store, "0").stdout


@pytest.mark.parametrize("colour", [False, True])
def test_a_document_as_one_token_fits_its_line(colour: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_runtime.cli.features import feature_view

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(feature_view, "has_colour", lambda: colour)
    text = "many words " * 30
    one = context("x", "x", 2.0) | {"text": text, "ends": [len(text)], "end": len(text)}
    opened = open_store(write_store(tmp_path / "store", [feature([one])], per="document"))
    lines = [click.unstyle(line) for line in feature_view.lines(opened, opened.feature(0), 3)]
    (shown,) = (line for line in lines if "many words" in line)
    assert len(shown) <= 60 and shown.endswith("a.jsonl:7") and "…" in shown
    assert "1 % of the documents, 10" in "\n".join(lines)


def test_a_hit_shows_the_words_also_far_from_the_peak(tmp_path: Path) -> None:
    far = context("peak " + "word " * 60 + "needle in the hay", "peak", 2.0)
    shown = run("features", "search", write_store(tmp_path / "store", [feature([far])]), "needle").stdout
    assert "needle in the hay" in shown and "in a context" in shown


def test_search_says_where_it_matched(store: Path) -> None:
    lines = run("features", "search", store, "FILE").stdout.splitlines()
    assert lines[0].split("  ")[:2] == ["0", "file, files"] and lines[0].endswith(
        "  top tokens, at the peak, in a context"
    )
    assert lines[1] == "     4.00  Open the [[file]] and read it."
    assert run("features", "search", store, "no", "such").stdout == (
        "no feature of 3 has no such in its label, its top tokens or its contexts\n"
    )
    found = json.loads(run("features", "search", store, "file", "--json", "--top", "1").stdout)
    assert [(one["feature"], one["places"][0]) for one in found["features"]] == [(0, "top tokens")]
    assert "a search needs a word" in refused("features", "search", store, " ")


def test_labels_are_imported_and_counted(store: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("feature,label\n0,files\n0,other\n1,\n")
    lines = run("features", "label", store, "--from", tmp_path / "a.csv").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["written", "chosen", "left out", "labels"]
    again = run("features", "label", store, "--from", tmp_path / "a.csv", "--json")
    assert (json.loads(again.stdout)["written"], json.loads(again.stdout)["labelled"]) == (0, 1)
    assert "does not exist" in refused("features", "label", store, "--from", tmp_path / "b.csv")
    assert "does not exist" in refused("features", "label", tmp_path / "b", "--from", tmp_path / "a.csv")


def test_the_folder_of_a_store_gives_its_labels(store: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", [feature()] * 3)
    command = ("features", "label", other, "--from", store)
    assert "store has no labels.jsonl" in refused(*command)
    (store / "labels.jsonl").write_text('{"feature": 2, "label": "files", "source": "delphi"}\n')
    assert json.loads(run(*command, "--json").stdout)["written"] == 1
    assert (other / "labels.jsonl").read_text() == (store / "labels.jsonl").read_text()
    described = json.loads((other / "store.json").read_text())
    (other / "store.json").write_text(json.dumps(described | {"weights_sha256": "2" * 64}))
    assert "an SAE of other weights" in refused(*command)
    assert run(*command, "--any-source").exit_code == 0


def test_a_store_of_a_deployed_model_names_the_bundle_in_it(tmp_path: Path) -> None:
    (tmp_path / "model" / "sae").mkdir(parents=True)
    (tmp_path / "model" / "sae" / "sae_runtime.json").write_text("{}")
    said = refused("features", "build", tmp_path / "f", "-o", tmp_path / "store", "--sae", tmp_path / "model")
    assert said.endswith(f"model is a deployed model; name its bundle, {tmp_path / 'model' / 'sae'}")


def test_the_lines_of_a_search_stand_below_one_another(tmp_path: Path) -> None:
    contexts = [context("a file", "file", 2.0)]
    found = [feature(contexts, top_tokens=[token("file")]), feature(contexts, top_tokens=[token("file"), token("zip")])]
    lines = run("features", "search", write_store(tmp_path / "store", found), "file").stdout.splitlines()
    assert len({line.index("1 %") for line in lines[::2]}) == 1


def test_a_warning_stands_on_stderr(store: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"modelId": "gpt2-medium", "index": 0, "description": "a"}))
    result = run("features", "label", store, "--from", tmp_path / "a.json")
    assert (result.exit_code, result.stderr.startswith("warning: ")) == (0, True)


def test_a_store_is_exported(store: Path, tmp_path: Path) -> None:
    command = ("features", "export", store, "--format", "neuronpedia", "-o", tmp_path / "out", "-q")
    assert run(*command).stdout.startswith("written   2 features to ")
    assert "--force" in refused(*command)
    assert json.loads(run(*command, "--force", "--json").stdout)["source"] == "6-store"


def test_wrong_usage_of_show_says_what_to_give(store: Path, tmp_path: Path) -> None:
    assert "Name a feature" in misused("features", "show", store)
    assert "are for a model" in misused("features", "show", store, "0", "--text", "a")
    assert "from 0 on" in misused("features", "show", store, "0", "--contexts", "-1")
    assert "holds no store.json, so it is no feature store" in refused("features", "show", tmp_path, "0")
    assert "does not exist, so it is no feature store" in refused("features", "search", tmp_path / "a", "file")
    assert "Give a text" in misused("features", "show", tmp_path)


def test_an_altered_store_is_one_sentence(store: Path) -> None:
    content = bytearray((store / "contexts.parquet").read_bytes())
    content[20] ^= 255
    (store / "contexts.parquet").write_bytes(content)
    assert "was altered" in refused("features", "show", store, "0")
    assert "was altered" in refused("features", "search", store, "file")
