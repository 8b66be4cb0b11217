import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import misused, refused, run
from conftest import D_IN, make_manifest, make_weights, make_x
from native import native
from tiny_model import save_bert

from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.evaluation_file import read_evaluation

BundleOf = Callable[..., Path]


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(200))
    return tmp_path / "x.npy"


def test_evaluate_prints_and_writes_what_it_measured(
    bundle_of: BundleOf, kind: str, acts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation.json"
    arguments = ("evaluate", bundle_of(kind), "--activations", acts, "--batch", "100", "-o", out)
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    found = json.loads(out.read_text())
    served = found["served"]
    assert lines[0] == f"bundle {bundle_of(kind)}"
    assert lines[1] == "measured on 200 tokens of x.npy, perhaps trained on"
    assert lines[2].startswith(
        f"as served FVU {served['fvu']:.4f}, explained variance {served['explained_variance']:.4f}, "
        f"L0 {served['l0']:.2f} (5 % "
    )
    assert any(line.startswith("batch rule over 100 FVU") for line in lines) == (kind != "token")
    assert lines[-1] == f"written {out}"
    assert len(served["matches"]) == 150 and sum(served["l0_tokens"]) == 200
    brief = json.loads(run(*arguments, "--json", "--force").stdout)
    assert brief["decoder"]["median"] == found["decoder"]["median"] and "histogram" not in brief["decoder"]
    assert brief["served"] == {key: served[key] for key in served if key not in ("matches", "largest", "l0_tokens")}


def test_an_evaluation_of_files_whose_names_are_not_utf8_is_reported(
    bundle_of: BundleOf, acts: Path, tmp_path: Path
) -> None:
    acts = acts.rename(tmp_path / os.fsdecode(b"x\xff.npy"))
    sae = shutil.copytree(bundle_of("mutual"), tmp_path / os.fsdecode(b"n\xff"))
    out = tmp_path / "evaluation.json"
    assert run("evaluate", sae, "--activations", acts, "-o", out).exit_code == 0
    found = read_evaluation(out)
    assert (found.name, found.activations) == (r"n\udcff", r"x\udcff.npy")


def test_evaluate_lets_the_model_read_text_as_it_was_harvested(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "bert")
    text = tmp_path / "words.txt"
    text.write_text("\n\n".join("w1 w2 w3 w4 w5" for _ in range(30)))
    acts, sae = tmp_path / "acts", tmp_path / "sae"
    harvest = (model, "--hook", "encoder.layer.1", "--text", text, "--context", "6", "--special")
    assert run("harvest", *harvest, "--name", "tiny", "-o", acts).exit_code == 0
    train = ("--d-sae", "32", "--k", "3", "--tokens", "400", "--batch", "40", "--holdout", "0.4")
    assert run("train", "--activations", acts, *train, "-o", sae).exit_code == 0
    # The bundle is not exported: evaluation is torch's.
    result = run(
        "evaluate", sae, "--activations", acts, "--model", model, "--text", text, "--text-tokens", "90", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["rows"] == "held-out"
    host = found["host"]
    assert (host["model"], host["hook"], host["special"], host["tokens"]) == ("bert", "encoder.layer.1", True, 90)
    assert host["windows"] == 20  # windows of 6 and of 3 tokens for a line of 5 words, the frames included
    assert host["replaced"].keys() == {"served", "batch", "mean"}
    arguments = ("evaluate", sae, "--activations", acts, "--model", model, "--text", text)
    index = json.loads((acts / "activations.json").read_text())
    for where, name, value, expected in ((": index.", "context", "6", "int"), (".", "special", 1, "bool")):
        (acts / "activations.json").write_text(json.dumps({**index, name: value}))
        said = f"error: {acts / 'activations.json'}{where}{name} must be {expected}, got {value!r}; harvest again"
        assert refused(*arguments) == said
    (acts / "activations.json").write_text("{")
    assert refused(*arguments).startswith(f"error: {acts / 'activations.json'}")


def test_evaluate_refuses_outputs_and_options_that_do_not_fit(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", bundle_of("mutual"), "--activations", acts)
    assert refused(*arguments, "-o", acts, "--force").endswith("name another output")
    inside = bundle_of("mutual") / "evaluation.json"
    said = refused(*arguments, "-o", inside)
    assert said == f"error: the output {inside} would be inside the bundle {inside.parent}; name another output"
    (tmp_path / "folder").mkdir()
    assert refused(*arguments, "-o", tmp_path / "folder").endswith("is a folder; name a file in it")
    assert refused(*arguments, "--rows", "held-out").endswith("give the activations of its training, or --rows all")
    assert refused(*arguments, "--batch", "1").startswith("error: batch must be at least 2")
    assert refused(*arguments, "--model", "m", "--text", acts).endswith("does not know its hook; name it with --hook")
    assert misused(*arguments, "--model", "m") == "--model and --text go together: the model reads the text."
    assert refused("evaluate", tmp_path, "--activations", acts).endswith("make one: sae-runtime train")
    np.save(tmp_path / "narrow.npy", np.zeros((4, 3), np.float32))
    said = refused("evaluate", bundle_of("mutual"), "--activations", tmp_path / "narrow.npy")
    assert f"activations have d_in 3, this SAE expects {D_IN}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "narrow.npy", "x.npy"]


def test_evaluate_names_a_missing_model_before_work(acts: Path, tmp_path: Path) -> None:
    manifest = dataclasses.replace(make_manifest(30, "token"), model="m", hook="h")
    bundle.write(tmp_path / "sae", make_weights(30, "token"), manifest)
    (tmp_path / "a.txt").write_text("one")
    text = tmp_path / "a.txt"
    arguments = ("evaluate", tmp_path / "sae", "--activations", acts, "--model", tmp_path / "m", "--text", text)
    assert refused(*arguments) == f"error: the model folder {tmp_path / 'm'} does not exist; check its path"


def test_evaluate_of_a_transcoder_gives_fvu_where_it_has_targets(acts: Path, tmp_path: Path) -> None:
    path = native(tmp_path / "sae", selection="topk", k=5, pre_bias=False, d_out=7)
    arguments = ("evaluate", path, "--activations", acts, "--any-source")
    without = run(*arguments)
    assert without.exit_code == 0 and "FVU" not in without.stdout and "L0 5.00" in without.stdout
    assert "effective rank" in without.stdout
    np.save(tmp_path / "y.npy", make_x(200, seed=3)[:, :7])
    found = json.loads(run(*arguments, "--targets", tmp_path / "y.npy", "--json").stdout)
    assert found["served"]["fvu"] > 0 and found["batch"] is None
    said = refused(*arguments, "--model", "m", "--text", acts)
    assert said.endswith(
        "is a transcoder: its features reconstruct another activation than it reads, and can "
        "neither replace nor edit that one; give an SAE that reconstructs its input"
    )
