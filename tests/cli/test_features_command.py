"""`features show` and `features find` on a deployed model, as a person at a terminal meets them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import misused, refused, run
from deployed_model import D_SAE, by_torch, deploy, some_texts

from sae_runtime.bundle.labels import write_labels
from sae_runtime.exports.splice.splicing import Splice
from sae_runtime.extraction.finding import find
from sae_runtime.model import Model, load_model

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = list(dict.fromkeys(some_texts(40, 12)))
EVIL = "\x1b[2J\u202e"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    return deploy(tmp_path_factory.mktemp("models") / "model", "bert", {"bundle": bundle_of("mutual", D_SAE)})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    folder = deploy(tmp_path_factory.mktemp("models") / "model", "bert", {"bundle": bundle_of("mutual", D_SAE)})
    write_labels(folder / "sae", {feature: f"文件 label {feature}" for feature in range(0, D_SAE, 2)})
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    """A model with two SAEs."""
    splices = [
        Splice(bundle=bundle_of(kind, D_SAE), hook=f"encoder.layer.{number}", name=name)
        for number, (kind, name) in enumerate((("mutual", "first"), ("token", "second")))
    ]
    return deploy(tmp_path_factory.mktemp("models") / "model", "bert", splices)


def strongest(row: Any, count: int) -> list[tuple[int, float]]:
    best = np.argsort(-row, kind="stable")[:count]
    return [(int(feature), float(row[feature])) for feature in best if row[feature] > 0]


def test_show_prints_the_strongest_features_of_a_torch_hook(model: Path) -> None:
    text = "w1 w2 w31"
    features = by_torch("bert", text, "mutual")[0]
    shown = run("features", "show", model, "--text", text, "--special", "--top", "2").stdout.splitlines()
    for line, token, row in zip(shown, ["<CLS>", *text.split(), "<SEP>"], features, strict=True):
        assert line.split() == [token, *(part for f, v in strongest(row, 2) for part in (str(f), f"{v:.2f}"))]
    assert len({len(line) for line in shown}) == 1  # the columns are aligned
    own = run("features", "show", model, "--text", text, "--top", "2").stdout.splitlines()
    assert [line.split() for line in own] == [line.split() for line in shown[1:-1]]


def test_show_as_json(labelled: Path) -> None:
    text = "w1 w2"
    shown = json.loads(run("features", "show", labelled, "--text", text, "--json").stdout)
    (seen,) = shown["texts"]
    assert seen["text"] == text
    assert [(one["token"], one["begin"], one["end"], one["special"]) for one in seen["tokens"]] == [
        ("w1", 0, 2, False),
        ("w2", 3, 5, False),
    ]
    for one, row in zip(seen["tokens"], by_torch("bert", text, "mutual")[0][1:-1], strict=True):
        found = [(each["feature"], each["label"]) for each in one["features"]["sae"]]
        assert found == [(f, None if f % 2 else f"文件 label {f}") for f, _ in strongest(row, 3)]
        assert [each["value"] for each in one["features"]["sae"]] == pytest.approx(
            [value for _, value in strongest(row, 3)], rel=1e-4
        )


def test_show_gives_each_labelled_feature_a_line(labelled: Path) -> None:
    (row,) = by_torch("bert", "w5", "mutual")[0][1:-1]
    lines = [line.split(maxsplit=3) for line in run("features", "show", labelled, "--text", "w5").stdout.splitlines()]
    lines[0] = lines[0][1:] if lines[0][0] == "w5" else []
    expected = strongest(row, 3)
    assert [line[:2] for line in lines] == [[str(f), f"{v:.2f}"] for f, v in expected]
    assert [" ".join(line[2:]) for line in lines] == ["" if f % 2 else f"文件 label {f}" for f, _ in expected]


def test_show_takes_several_texts_and_files_of_them(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 w2\n\nw3\n")
    (tmp_path / "b.csv").write_text("body\nw4 w5\n")
    given = ("--text", "w0", "--text-file", tmp_path / "a.txt")
    shown = run("features", "show", model, *given).stdout
    blocks = [[line.split()[0] for line in block.splitlines()] for block in shown.split("\n\n")]
    assert blocks == [["w0", "w0"], ["w1", "w1", "w2"], ["w3", "w3"]]
    assert "w4" in run("features", "show", model, "--text-file", tmp_path / "b.csv", "--text-field", "body").stdout
    whole = run("features", "show", model, "--text-file", tmp_path / "a.txt", "--document", "file", "--json").stdout
    assert [one["text"] for one in json.loads(whole)["texts"]] == ["w1 w2\n\nw3\n"]


def test_show_keeps_columns_and_terminals_safe(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = f"w1 文件 👩‍👩‍👧 {EVIL} w2 {'x' * 50}"
    shown = run("features", "show", model, "--text", text).stdout
    assert EVIL[0] not in shown and EVIL[-1] not in shown and r"\x1b[2J\u202e" in shown
    assert "xxx…" in shown and "文件" in shown
    assert "(no token of the text" in run("features", "show", model, "--text", "").stdout


def test_show_begins_before_the_last_text_is_read(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, sizes = Model.features, list[int]()

    def counted(self: Model, texts: list[str]) -> Any:
        sizes.append(len(texts))
        return whole(self, texts)

    monkeypatch.setattr(Model, "features", counted)
    (tmp_path / "a.txt").write_text("w1 w2\n" * 150)
    shown = run("features", "show", model, "--text-file", tmp_path / "a.txt").stdout
    assert len(sizes) > 1 and sum(sizes) == 150 and shown.count("w1 w2") == 150
    sizes.clear()
    with monkeypatch.context() as broken:
        broken.setattr("sae_runtime.cli.features.show.labels_of", raising)
        assert "labels" in refused("features", "show", model, "--text", "w1")
    assert sizes == []  # labels that cannot be read are told before the first text is


def raising(*_: Any) -> Any:
    raise ValueError("no labels")


def test_show_of_several_saes(two: Path) -> None:
    shown = run("features", "show", two, "--text", "w1").stdout.splitlines()
    assert [line for line in shown if line.endswith(":")] == ["first:", "second:"]
    alone = run("features", "show", two, "--text", "w1", "--sae", "second").stdout.splitlines()
    assert alone[-1] == shown[-1] and "first:" not in alone
    said = refused("features", "show", two, "--text", "w1", "--sae", "third")
    assert said == "error: the model has no SAE 'third' that gives features; it has first, second"


def test_what_show_cannot_do_is_one_sentence(model: Path, bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    assert misused("features", "show", model) == "Give a text, --text or --text-file; or name a store and a feature."
    assert misused("features", "show", model, "--text", "a", "--top", "0").startswith("--top is a number of features")
    assert "is not UTF-8" in refused("features", "show", model, "--text", "a\udcff")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert "is not UTF-8 text" in refused("features", "show", model, "--text-file", tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("\n \n")
    said = refused("features", "show", model, "--text-file", tmp_path / "b.txt")
    assert said == f"error: {tmp_path / 'b.txt'} holds no text; name a file that holds some"
    assert "is a bundle, an SAE alone" in refused("features", "show", bundle_of("mutual", D_SAE), "--text", "a")
    plain = deploy(tmp_path / "plain", "bert", [])
    assert "has no SAE that gives features" in refused("features", "show", plain, "--text", "w1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text("\n".join(TEXTS[:20]))
    (folder / "b.txt").write_text("\n\n".join(TEXTS[20:]))
    rows = [{"text": text, "topic": "a" if text in TEXTS[:20] else "b"} for text in TEXTS]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"text": "w1", "topic": None}])))
    pairs = zip(TEXTS[:20], TEXTS[20:40], strict=False)
    (folder / "pairs.csv").write_text("one,other\n" + "\n".join(",".join(pair) for pair in pairs))
    return folder


def test_find_gives_the_ranking_of_the_library_in_each_of_three_ways(model: Path, files: Path) -> None:
    call = ("features", "find", model, "--top", "4", "--json", "-q")
    by_files = json.loads(run(*call, "--about", files / "a.txt", "--against", files / "b.txt").stdout)
    table = ("--table", files / "all.jsonl", "--label-column", "topic", "--about-value", "a")
    assert json.loads(run(*call, *table).stdout) == by_files
    assert json.loads(run(*call, *table, "--against-value", "b").stdout) == by_files
    found = find(load_model(model), TEXTS[:20], TEXTS[20:], count=4, examples=2)
    assert [one["feature"] for one in by_files["features"]] == [one.feature for one in found.contrast.features]
    for one, ranked, examples in zip(by_files["features"], found.contrast.features, found.examples, strict=True):
        assert (one["auc"], one["interval"]) == (ranked.auc, list(ranked.interval))
        assert [each["value"] for each in one["examples"]] == [each.value for each in examples]
        assert [each["text"] for each in one["examples"]] == [found.texts[each.text] for each in examples]
    columns = ("--about-column", "one", "--against-column", "other", "--table", files / "pairs.csv")
    assert json.loads(run(*call, *columns).stdout)["ranked_on"] == [len(TEXTS[20:]) // 2] * 2


def test_find_prints_a_table_and_where_features_are_strongest(labelled: Path, files: Path) -> None:
    call = ("features", "find", labelled, "--about", files / "a.txt", "--against", files / "b.txt", "--top", "3")
    result = run(*call)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "texts about + against: 10 + " in lines[1] and lines[3].split()[:4] == ["feature", "more", "AUC", "95"]
    assert max(map(len, lines)) <= 80
    found = json.loads(run(*call, "--json").stdout)["features"]
    rows = [line.split() for line in lines if re.match(r" +\d+ +(about|against)", line)]
    assert [(int(row[0]), row[1], float(row[2])) for row in rows] == [
        (one["feature"], one["more"], round(one["auc"], 2)) for one in found
    ]
    marked = [re.search(r"(\d+\.\d+)  .*\[(w\d+)\]", line) for line in lines]
    assert [match[2] for match in marked if match] == [
        each["text"][each["begin"] : each["end"]] for one in found for each in one["examples"]
    ]
    assert ("文件" in result.stdout) == any(one["feature"] % 2 == 0 for one in found)


def test_find_says_when_texts_are_few_or_count_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1\nw2\nw1\nw9")
    (tmp_path / "b.txt").write_text("w5\nw6\nw9")
    call = ("features", "find", model, "--about", tmp_path / "a.txt", "--against", tmp_path / "b.txt")
    shown = run(*call).stdout
    assert "texts left out: 1 that came twice, 1 in both sets" in shown and "note: these are few texts" in shown
    (tmp_path / "b.txt").write_text("w5")
    assert "so nothing is held out" in run(*call).stdout


def test_what_find_cannot_do_is_one_sentence(model: Path, files: Path, tmp_path: Path) -> None:
    a, table = files / "a.txt", files / "all.jsonl"
    for arguments in (
        (),
        ("--about", a),
        ("--about", a, "--against", a, "--table", table),
        ("--table", table),
        ("--table", table, "--label-column", "topic"),
        ("--table", table, "--about-column", "text", "--label-column", "topic", "--about-value", "a"),
        ("--label-column", "topic", "--about-value", "a"),
    ):
        assert misused("features", "find", model, *arguments).startswith("Give two sets of texts: --about FILE and")
    call = ("features", "find", model, "-q")
    said = refused(*call, "--table", table, "--label-column", "topic", "--about-value", "c")
    assert said == "error: no text has 'c' in the column 'topic'; it has 'a', 'b'"
    said = refused(*call, "--table", table, "--label-column", "topic", "--about-value", "a", "--against-value", "a")
    assert said == "error: --about-value and --against-value are both 'a'; two sets need two values"
    said = refused(*call, "--table", a, "--about-column", "one", "--against-column", "other")
    assert said.startswith(f"error: {a} is plain text and has no columns; give a .csv or .jsonl file")
    assert "no field 'topics'" in refused(*call, "--table", table, "--label-column", "topics", "--about-value", "a")
    assert "each of the 20 texts about is also against" in refused(*call, "--about", a, "--against", a)
    (tmp_path / "empty.txt").write_text("")
    assert "holds no text" in refused(*call, "--about", tmp_path / "empty.txt", "--against", a)
    assert "does not exist" in refused(*call, "--about", tmp_path / "none.txt", "--against", a)
    assert misused(*call, "--about", a, "--against", a, "--top", "0") == "--top is a whole number from 1 on, got 0."
