"""`steer MODEL --text`: what an edit moves, compared with what the library computes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import misused, refused, run
from deployed_model import D_SAE, deploy, some_texts

from sae_runtime import Edit, Model, load_model
from sae_runtime.bundle.labels import write_labels

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sae_runtime.deployed.notices.AssumedPoolingWarning"),
]
AMONG = list(dict.fromkeys(some_texts(30, 8)))
TEXT = "w1 w2 w3"
SET = ("--set", "12=30")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def give(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / "model"
            made[kind] = deploy(folder, kind, {"bundle": bundle_of("mutual", D_SAE)})
            write_labels(made[kind] / "sae", {12: "twelve"})
        return made[kind]

    return give


def test_the_nearest_texts_before_and_after(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "among.txt").write_text("\n".join(AMONG))
    path = folder_of("bert")
    call = ("steer", path, "--text", TEXT, *SET, "--among", tmp_path / "among.txt", "--nearest", "3")
    shown = json.loads(run(*call, "--json").stdout)
    model = load_model(path)
    unit = [
        vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        for vectors in (model.embed(AMONG), model.embed(TEXT), model.embed(TEXT, Edit.set(12, 30.0)))
    ]
    (moved,) = shown["texts"]
    assert (shown["kind"], shown["sae"], shown["features"], moved["text"]) == ("vectors", "sae", [12], TEXT)
    assert moved["cosine"] == pytest.approx(float(unit[1] @ unit[2]), abs=1e-5) and moved["cosine"] < 0.99
    cosines = [unit[0] @ unit[1], unit[0] @ unit[2]]
    orders = [np.argsort(-values).tolist() for values in cosines]
    expected = sorted({*orders[0][:3], *orders[1][:3]}, key=orders[1].index)
    assert [one["text"] for one in moved["nearest"]] == [AMONG[number] for number in expected]
    for number, one in zip(expected, moved["nearest"], strict=True):
        assert one["ranks"] == [order.index(number) + 1 for order in orders]
        assert one["cosines"] == pytest.approx([float(values[number]) for values in cosines], abs=1e-5)
    lines = run(*call).stdout.splitlines()
    assert lines[0].split() == ["model", str(path)] and lines[1].split()[:4] == ["edits", "1", "feature", "of"]
    assert TEXT in lines and lines[-1].endswith(AMONG[expected[-1]]) and max(map(len, lines[2:])) <= 80


def test_an_answer_without_edits_and_with_them(folder_of: Callable[[str], Path]) -> None:
    path = folder_of("gpt2")
    model = load_model(path)
    answers = []
    for edits in ([], [Edit.set(12, 30.0)]):
        answer = model.generate(TEXT, edits, max_new_tokens=6)
        answers.append("".join(map(str, answer)))
    assert answers[0] != answers[1]
    call = ("steer", path, "--text", TEXT, "--max-new-tokens", "6", "--set", "twelve=30")
    shown = json.loads(run(*call, "--json").stdout)
    assert shown["texts"] == [{"text": TEXT, "without": answers[0], "with": answers[1]}]
    printed = run(*call).stdout
    assert "'twelve' is feature 12" in printed
    before, after = printed.partition("with edits:")[::2]
    assert answers[0].strip() in before and answers[1].strip() in after
    assert "chat template" in refused(*call, "--chat")
    drawn = [run(*call, "--temperature", "100", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]


def test_how_far_each_output_moved(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "kind", "other")
    path = folder_of("bert")
    call = ("steer", path, "--text", TEXT, *SET)
    before, after = (load_model(path).run(TEXT, edits) for edits in ([], [Edit.set(12, 30.0)]))
    (moved,) = json.loads(run(*call, "--json").stdout)["texts"]
    for name, far in moved["outputs"].items():
        a, b = before[name].astype(np.float64), after[name].astype(np.float64)
        assert far["relative"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
        assert far["largest"] == pytest.approx(np.abs(b - a).max(), rel=1e-5)
    assert set(moved["outputs"]) == set(before)
    assert "last_hidden_state moved by " in run(*call).stdout


def test_a_gate_reaches_some_tokens_alone(folder_of: Callable[[str], Path]) -> None:
    path = folder_of("bert")
    cosines = [
        json.loads(run("steer", path, "--text", TEXT, *SET, "--gate", gate, "--json").stdout)["texts"][0]["cosine"]
        for gate in ("all", "text", "last_prompt")
    ]
    assert len(set(cosines)) == 3
    assert "reaches no token here" in refused("steer", path, "--text", TEXT, *SET, "--gate", "generated")


def test_what_a_bundle_takes_and_what_a_model_takes(
    folder_of: Callable[[str], Path], bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    path, bundle = folder_of("bert"), bundle_of("mutual", D_SAE)
    np.save(tmp_path / "x.npy", np.zeros((2, 24), np.float32))
    acts = ("--activations", tmp_path / "x.npy")
    which = "Give --activations of a BUNDLE, or --text or --text-file of a MODEL."
    assert misused("steer", path, *SET) == which
    assert misused("steer", path, *SET, *acts, "--text", "w1") == which
    assert misused("steer", path, "--text", "w1") == "Give an edit: --set, --add, --scale, --ablate or --cap."
    assert misused("steer", bundle, *SET, *acts) == "Missing option '-o' / '--output'."
    assert "writes nothing; leave it out" in misused("steer", path, *SET, "--text", "w1", "-o", tmp_path / "y.npy")
    assert "is a bundle, an SAE alone" in refused("steer", bundle, *SET, "--text", "w1")
    said = refused("steer", path, *SET, *acts, "-o", tmp_path / "y.npy")
    assert said.endswith(f"{path} is a deployed model; give it --text, or name a bundle, such as {path / 'sae'}")
    assert "feature 150 does not exist" in refused("steer", path, "--set", "150=1", "--text", "w1")
    assert "'thirteen' is no label" in refused("steer", path, "--set", "thirteen=1", "--text", "w1")
    said = refused("steer", path, *SET, "--text", "w1", "--sae", "other")
    assert said == "error: the model takes edits of sae, not of 'other'; name one of them by --sae"
    saved = (*acts, "-o", tmp_path / "y.npy")
    for unused in (("--gate", "text"), ("--among", tmp_path / "x.txt"), ("--chat",), ("--seed", "0"), ("--sae", "sae")):
        assert f"{unused[0]} counts for --text of a MODEL; leave it out." == misused(
            "steer", bundle, *SET, *saved, *unused
        )
    assert not (tmp_path / "y.npy").exists()
    text = ("--text", "w1", *SET)
    assert "--chat counts for models that give text" in misused("steer", path, *text, "--chat")
    assert "--any-source counts for --activations" in misused("steer", path, *text, "--any-source")
    (tmp_path / "x.txt").write_text("w2")
    assert "--among counts for models that give vectors" in misused(
        "steer", folder_of("gpt2"), *text, "--among", tmp_path / "x.txt"
    )
    (tmp_path / "x.txt").write_text("\n")
    said = refused("steer", path, *text, "--among", tmp_path / "x.txt")
    assert said == f"error: {tmp_path / 'x.txt'} holds no text; name a file that holds some"
    plain = deploy(tmp_path / "plain", "bert", [])
    assert "has no SAE that takes edits" in refused("steer", plain, *SET, "--text", "w1")
