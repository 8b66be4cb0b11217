import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import misused, refused, run
from conftest import D_IN, make_manifest, make_weights, make_x, no_file_beyond
from tiny_model import save_bert

from sae_runtime import Manifest, train
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.labels import write_labels
from sae_runtime.train import HarvestConfig, TrainConfig

NEEDED = ("--d-sae", "64", "--tokens", "400", "--batch", "50")
Call = tuple[Any, Path, Any, dict[str, Any]]


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(500))
    return tmp_path / "x.npy"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of `fit` and `fit_many`, which return the manifests of bundles without fitting any."""
    made: list[Call] = []

    def fit(activations: Any, out: Path, config: TrainConfig, **settings: Any) -> Manifest:
        made.append((activations, out, config, settings))
        return make_manifest(64, "mutual")

    def fit_many(activations: Any, out: Path, configs: dict[str, TrainConfig], **settings: Any) -> dict[str, Manifest]:
        made.append((activations, out, configs, settings))
        return {name: make_manifest(64, config.allocation) for name, config in configs.items()}

    monkeypatch.setattr(train, "fit", fit, raising=False)
    monkeypatch.setattr(train, "fit_many", fit_many, raising=False)
    return made


def printed(manifest: Manifest) -> dict[str, Any]:
    """What --json gives of a bundle."""
    assert manifest.left_out is not None
    return {
        "rows": dict(manifest.provenance["rows"]),
        "measured": dict(manifest.measured),
        "left_out": dict(manifest.left_out.rows),
        "measured_with_left_out": {},
    }


def test_fits_and_says_what(acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "sae"
    arguments = ("train", "--activations", acts, *NEEDED, "--allocation", "token", "--k", "4", "--seed", "3", "-o", out)
    result = run(*arguments, "--metrics", tmp_path / "metrics.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    manifest = bundle.read(out).manifest
    assert manifest.provenance["config"]["seed"] == 3
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["tokens"] == 400
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:3] == [
        f"bundle {out}",
        "source unknown",
        f"architecture {D_IN} wide, 64 features, keeps the top 4 of every token",
    ]
    assert lines[-1] == f"next sae-runtime export {out}"
    result = run(*arguments, "--json", "--force", "--quiet")
    assert json.loads(result.stdout) == {"bundle": str(out), **printed(manifest)}


def test_settings_come_from_flag_environment_and_file(calls: list[Call], acts: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'[train]\nactivations = "{acts}"\nk = [16]\nd_sae = 64\ntokens = 400\nbatch = 40\nlr = 0.1\n')
    env = {"SAE_RUNTIME_TRAIN_BATCH": "50", "SAE_RUNTIME_TRAIN_LR": "0.2", "SAE_RUNTIME_TRAIN_QUIET": "1"}
    result = run("train", "--config", file, "--lr", "0.3", "-o", tmp_path / "sae", "--force", env=env)
    assert result.exit_code == 0, result.output
    config = TrainConfig(k=16.0, d_sae=64, tokens=400, batch=50, lr=0.3)
    kept = {"run_state": tmp_path / "sae.run-state", "run_state_seconds": 300.0, "resume": False, "licence": None}
    settings = {"metrics": None, "tensorboard": None, **kept, "force": True, "progress": False}
    assert calls == [(acts, tmp_path / "sae", config, settings)]


def test_tokens_and_sizes_are_numbers_as_people_write_them(calls: list[Call], acts: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\ntokens = 2e6\n")
    for number, tokens in enumerate((("--tokens", "2e6"), ("--tokens", "2M"), ("--config", str(file)))):
        arguments = ("train", "--activations", acts, *tokens, "--batch", "2k", "-o", tmp_path / str(number))
        assert run(*arguments).exit_code == 0
        assert (calls[-1][2].tokens, calls[-1][2].batch, calls[-1][2].d_sae) == (2_000_000, 2_000, None)


def test_an_interrupt_names_the_run_state_that_it_leaves(
    acts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, run_state: Path, **__: Any) -> None:
        if acts.with_name("saved").exists():
            run_state.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted, raising=False)
    arguments = ("train", "--activations", acts, *NEEDED, "-o", tmp_path / "sae")
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (130, "interrupted; nothing was left half written\n")
    acts.with_name("saved").touch()
    result = run(*arguments)
    state = tmp_path / "sae.run-state"
    assert (result.exit_code, result.stderr) == (
        130,
        f"interrupted; {state} is kept; go on with the same command and --resume\n",
    )


def test_refuses_before_work(calls: list[Call], acts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    arguments = ("train", "--activations", acts, *NEEDED, "-o")
    assert (
        refused(*arguments, folder)
        == f"error: {folder} already exists; pass --force to replace it, in Python force=True"
    )
    assert refused(*arguments, tmp_path, "--force") == (
        f"error: the output {tmp_path} is or holds the activations {acts}; name another output"
    )
    assert calls == []
    assert run(*arguments, folder, "--force").exit_code == 0  # an empty folder is nobody's
    (folder / "thesis.txt").write_text("mine")
    assert refused(*arguments, folder, "--force") == (
        f"error: {folder} holds thesis.txt, which would be lost; name another output"
    )
    assert len(calls) == 1
    bundle.write(tmp_path / "sae", make_weights(64, "token"), make_manifest(64, "token"))
    write_labels(tmp_path / "sae", {3: "of the old features"})
    assert refused(*arguments, tmp_path / "sae", "--force") == (
        f"error: {tmp_path / 'sae'} holds labels.jsonl, which would be lost; name another output"
    )
    (tmp_path / "sae" / "labels.jsonl").unlink()
    assert run(*arguments, tmp_path / "sae", "--force").exit_code == 0
    assert len(calls) == 2


def test_wrong_settings(calls: list[Call], acts: Path, tmp_path: Path) -> None:
    arguments = ("train", "--activations", acts, *NEEDED, "-o", tmp_path / "sae")
    assert refused(*arguments, "--k", "65") == "error: k must be in (0, d_sae=64], got 65"
    assert misused(*arguments, "--k", "many") == "Invalid value for '--k': 'many' is not a valid float."
    assert misused(*arguments, "--allocation", "free").startswith("Invalid value for '--allocation': 'free' is not one")
    assert misused("train", "--activations", acts, "-o", tmp_path / "sae") == "Missing option '--tokens'."
    assert "'1.5' is not a whole number" in misused(*arguments, "--pool", "1.5")
    assert misused("train", *NEEDED, "-o", tmp_path / "sae") == "Give --activations, or --model, --hook and --text."
    assert misused("train", *NEEDED, "--model", "m", "--hook", "h", "-o", tmp_path / "sae").startswith("Give --act")
    assert misused(*arguments, "--model", "m") == (
        "--model is another source of rows; leave out either it or --activations."
    )
    assert misused(*arguments, "--batch-tokens", "500") == (
        "--batch-tokens goes with --model; leave out either it or --activations."
    )
    assert calls == []


def test_repeated_settings_make_every_combination(calls: list[Call], acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "saes"
    repeated = ("--k", "8", "--k", "2.5", "--allocation", "BatchTopK", "--allocation", "feature", "--k", "8")
    exponent = ("--exponent", "0.5", "--offset", "1")
    result = run("train", "--activations", acts, *NEEDED, *repeated, *exponent, "-o", out)
    assert result.exit_code == 0, result.output
    ((source, made, configs, settings),) = calls
    assert (source, made, settings["run_state"]) == (acts, out, tmp_path / "saes.run-state")
    assert {name: (one.allocation, one.k) for name, one in configs.items()} == {
        "mutual-k8": ("mutual", 8.0),
        "mutual-k2.5": ("mutual", 2.5),
        "feature-k8": ("feature", 8.0),
        "feature-k2.5": ("feature", 2.5),
    }
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert [line for line in lines if line.startswith("bundle")] == [f"bundle {out / name}" for name in configs]
    assert lines[-1] == f"next sae-runtime export {out / 'feature-k2.5'}"


def test_fits_several_into_one_folder(acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "saes"
    arguments = ("train", "--activations", acts, *NEEDED, "--k", "2", "--k", "4", "-o", out)
    result = run(*arguments, "--json")
    found = {path.name: bundle.read(path).manifest for path in out.iterdir()}
    assert {name: one.batch_allocation.k for name, one in found.items()} == {"mutual-k2": 2.0, "mutual-k4": 4.0}
    assert json.loads(result.stdout)["bundles"] == [
        {"bundle": str(out / name), **printed(found[name])} for name in ("mutual-k2", "mutual-k4")
    ]
    assert run(*arguments, "--force").exit_code == 0
    (out / "thesis.txt").write_text("mine")
    assert refused(*arguments, "--force") == (
        f"error: {out} holds thesis.txt, which would be lost; name another output"
    )
    assert (out / "thesis.txt").read_text() == "mine"


def test_streams_what_harvest_would_read(calls: list[Call], tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    reading = ("--model", "some/model", "--hook", "h.0", "--text", text, "--text", "b.txt", "--context", "64")
    result = run("train", *reading, *NEEDED, "--special", "--device", "cpu", "-o", tmp_path / "sae")
    assert result.exit_code == 0, result.output
    config = HarvestConfig(
        model="some/model", hook="h.0", text=(text, Path("b.txt")), context=64, special=True, device="cpu"
    )
    assert calls[0][0] == config and calls[0][2] == TrainConfig(d_sae=64, tokens=400, batch=50, device="cpu")
    said = refused("train", *reading, *NEEDED, "--force", "-o", text)
    assert said == f"error: the output {text} is or holds the text number 1 {text}; name another output"
    assert len(calls) == 1


def test_streams_from_a_model(tmp_path: Path) -> None:
    save_bert(tmp_path / "model")
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join("w1 w2 w3 w4 " * (1 + i % 3) + f"w{i}" for i in range(40)))
    reading = ("--model", tmp_path / "model", "--hook", "encoder.layer.0", "--context", "16")
    arguments = ("train", *reading, "--text", text, *NEEDED, "--k", "4", "-o", tmp_path / "sae")
    result = run(*arguments, "--tensorboard", tmp_path / "events")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    manifest = bundle.read(tmp_path / "sae").manifest
    assert (manifest.model, manifest.hook, manifest.architecture.d_in) == ("model", "encoder.layer.0", 16)
    assert str(tmp_path) not in (tmp_path / "sae" / bundle.MANIFEST).read_text()
    assert any((tmp_path / "events").iterdir())
    assert refused(*arguments, "--force", "--hook", "nowhere").startswith("error: ")


def test_metrics_destroy_nothing(calls: list[Call], acts: Path, tmp_path: Path) -> None:
    arguments = ("train", "--activations", acts, *NEEDED, "-o", tmp_path / "sae", "--force", "--metrics", acts)
    said = refused(*arguments)
    assert said == f"error: the output {acts} is or holds the activations {acts}; name another output"
    assert calls == []


def test_what_torch_cannot_do_is_one_line(acts: Path, tmp_path: Path) -> None:
    arguments = ("train", "--activations", acts, "--tokens", "400", "--batch", "50", "-o", tmp_path / "sae")
    said = refused(*arguments, "--d-sae", "1000000000000")
    assert said.startswith("error: out of memory (") and said.endswith("; give smaller batches or fewer features)")
    said = refused(*arguments, "--d-sae", "64", "--device", "abacus")
    assert said.startswith("error: torch cannot compute on abacus (") and said.endswith("); use another --device")
    with no_file_beyond(10_000):
        said = refused(*arguments, "--d-sae", "64", "--k", "4")
    assert "tensors cannot be written" in said
    assert list(tmp_path.iterdir()) == [acts]
