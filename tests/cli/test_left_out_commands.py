"""What the commands say about rows of massive norm, and their option --max-norm."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import misused, refused, run
from conftest import make_x
from tiny_model import SPECIALS, save_bert

from sae_runtime.bundle import folder as bundle

TRAIN = ("--d-sae", "64", "--tokens", "2000", "--batch", "50", "--k", "4", "--holdout", "0.3")


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    x = make_x(1000)
    x[::40] *= 100
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"


def said(*arguments: str | Path) -> list[str]:
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


LEFT_OUT = "left out 25 rows (2.5 %) with more than 10 times the median norm"


def test_every_command_says_what_is_left_out_and_gives_figures_with_it(acts: Path, tmp_path: Path) -> None:
    sae = tmp_path / "sae"
    lines = said("train", "--activations", acts, *TRAIN, "-o", sae)
    with_them = bundle.read(sae).manifest.measured_with_left_out
    figures = f"with those left out: FVU {with_them['fvu']:.4f}, "
    assert LEFT_OUT in lines and sum(line.startswith(figures) for line in lines) == 1
    assert LEFT_OUT in said("inspect", sae)
    lines = said("calibrate", sae, "--activations", acts, "--k", "3", "-o", tmp_path / "calibrated")
    assert LEFT_OUT in lines and sum(line.startswith("with those left out: FVU") for line in lines) == 1
    assert LEFT_OUT in said("inspect", tmp_path / "calibrated")
    lines = said("evaluate", sae, "--activations", acts, "--rows", "all", "-o", tmp_path / "e.json")
    assert LEFT_OUT in lines and sum(line.startswith("with those left out: FVU") for line in lines) == 2
    found = json.loads((tmp_path / "e.json").read_text())
    assert (found["left_out"], found["max_norm"], found["tokens"]) == (25, 10.0, 975)
    assert found["served"]["with_left_out"]["tokens"] == 1000
    lines = said("evaluate", sae, "--activations", acts)
    count = bundle.read(sae).manifest.left_out
    assert count is not None and any(line.startswith(f"left out {count.rows['validation']} row") for line in lines)


def test_none_keeps_all_rows(acts: Path, tmp_path: Path) -> None:
    sae = tmp_path / "sae"
    lines = said("train", "--activations", acts, *TRAIN, "--max-norm", "none", "-o", sae)
    assert not any("left out" in line for line in lines)
    manifest = bundle.read(sae).manifest
    assert manifest.left_out is not None and manifest.left_out.norm_multiple is None
    for command in ("evaluate", "calibrate"):
        out = ("-o", tmp_path / "out") if command == "calibrate" else ()
        assert not any("left out" in line for line in said(command, sae, "--activations", acts, *out))
    assert LEFT_OUT in said("evaluate", sae, "--activations", acts, "--rows", "all", "--max-norm", "10")
    lines = said("calibrate", sae, "--activations", acts, "--max-norm", "10", "-o", tmp_path / "ten")
    assert LEFT_OUT in lines


def test_a_file_of_settings_takes_none(acts: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[train]\nmax_norm = "none"\n[evaluate]\nmax_norm = 50\n')
    said("train", "--config", tmp_path / "run.toml", "--activations", acts, *TRAIN, "-o", tmp_path / "sae")
    assert bundle.read(tmp_path / "sae").manifest.provenance["config"]["max_norm"] is None
    lines = said("evaluate", tmp_path / "sae", "--config", tmp_path / "run.toml", "--activations", acts)
    assert any("with more than 50 times the median norm" in line for line in lines)


def test_wrong_multiples_are_refused(acts: Path, tmp_path: Path) -> None:
    arguments = ("train", "--activations", acts, *TRAIN, "-o", tmp_path / "sae")
    assert "'ten' is neither a number nor none." in misused(*arguments, "--max-norm", "ten")
    for wrong in ("0.5", "nan", "-1"):
        assert refused(*arguments, "--max-norm", wrong).startswith("error: max_norm must be at least 1, got ")
    said(*arguments)
    for command in ("calibrate", "evaluate"):
        given = (command, tmp_path / "sae", "--activations", acts, "--max-norm", "0")
        assert refused(*given).startswith("error: max_norm must be at least 1")


@pytest.mark.filterwarnings("default")
def test_many_rows_that_are_left_out_are_warned_of_in_one_line(tmp_path: Path) -> None:
    x = make_x(1000)
    x[::4] *= 100
    np.save(tmp_path / "x.npy", x)
    result = run("train", "--activations", tmp_path / "x.npy", *TRAIN, "-o", tmp_path / "sae")
    expected = "25.0% of the rows have more than 10 times the median norm and are left out; if they are an ordinary"
    assert result.exit_code == 0 and result.stderr.startswith(f"warning: {tmp_path / 'x.npy'}: {expected}")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("or with --max-norm none\n")
    result = run("evaluate", tmp_path / "sae", "--activations", tmp_path / "x.npy")
    assert result.exit_code == 0 and result.stderr.startswith("warning: ")
    result = run("calibrate", tmp_path / "sae", "--activations", tmp_path / "x.npy", "-o", tmp_path / "out")
    assert result.exit_code == 0 and result.stderr.startswith("warning: ")


def test_what_a_harvest_leaves_out_is_carried_to_the_bundle_and_to_the_loss_of_the_model(tmp_path: Path) -> None:
    model, text, acts, sae = save_bert(tmp_path / "bert"), tmp_path / "words.txt", tmp_path / "acts", tmp_path / "sae"
    text.write_text("\n\n".join("w1 w2 w3 w4 w5" for _ in range(100)))
    reading = (model, "--hook", "encoder.layer.1", "--text", text, "--context", "7")
    lines = said("harvest", *reading, "--skip-first", "3", "--skip-token", "w4", "-o", acts, "-q")
    assert lines[-2:] == ["left out the first 3 positions of each window", "the tokens w4"]
    said("train", "--activations", acts, "--k", "1", "--d-sae", "32", "--tokens", "400", "--batch", "20", "-o", sae)
    token = len(SPECIALS) + 4
    lines = said("inspect", sae)
    at = lines.index("left out the first 3 positions of each window")
    assert lines[at + 1] == f"the tokens {token}"
    arguments = ("evaluate", sae, "--activations", acts, "--model", model, "--text", text, "--json")
    host = json.loads(run(*arguments).stdout)["host"]
    assert host["tokens"] == 200, "[CLS], w1 and w2 are the first three; w3 and w5 stay"
    assert json.loads(run(*arguments, "--skip-first", "0").stdout)["host"]["tokens"] == 400
    assert json.loads(run(*arguments, "--skip-token", "w5").stdout)["host"]["tokens"] == 200
    (acts / "activations.json").write_text(
        json.dumps({**json.loads((acts / "activations.json").read_text()), "skip_first": None, "skip_ids": None})
    )
    assert json.loads(run(*arguments).stdout)["host"]["tokens"] == 200, "else the bundle knows"
    assert refused(*arguments, "--skip-token", "nothing").startswith("error: 'nothing' is not one token")
