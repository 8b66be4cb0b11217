"""The ready SAE: sound, small, found by name, and never written to."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from numpy.typing import NDArray

from sae_runtime import load
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle import labels, ready
from sae_runtime.bundle.card import card
from sae_runtime.bundle.hub import local
from sae_runtime.bundle.ready import ready_names, ready_path, refuse_ready
from sae_runtime.bundle.sealed import is_ours, without_seal
from sae_runtime.bundle.stats import counted
from sae_runtime.exports import export
from sae_runtime.serve.catalogue import open_all
from sae_runtime.store.open_store import open_store
from sae_runtime.train.measure.torch_sae import open_sae

NAME = "all-MiniLM-L6-v2/encoder.layer.3"


def _home() -> Path:
    home = ready_path(NAME)
    assert home is not None
    return home


def _activations(rows: int) -> NDArray[np.float32]:
    """Made of a few features each, such as the SAE expects."""
    bundle, rng = bundles.read(_home()), np.random.default_rng(0)
    stats, weights = bundle.stats(), bundle.weights()
    assert stats is not None
    active = rng.random((rows, 1536)) < np.minimum(stats.density, 0.3)
    f = (active * stats.largest * 0.4).astype(np.float32)
    x: NDArray[np.float32] = f @ weights["W_dec"] + weights["b_dec"]
    return x


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with a small ready SAE, in a folder that tests may harm."""
    folder = tmp_path / "installed"
    shutil.copytree(_home(), folder / NAME)
    monkeypatch.setattr(ready, "FOLDER", folder)
    return folder / NAME


def test_the_bundle_is_sound_small_and_of_weights_graphs_and_texts_alone() -> None:
    bundle = bundles.read(_home())
    names = {path.name for path in _home().iterdir()}
    graphs = {"encode.onnx", "decode.onnx", "steer.onnx", "encode_joint.onnx"}
    data = {"sae_runtime.json", "cfg.json", "sae_weights.safetensors", "stats.safetensors"}
    assert names == graphs | data | {"labels.jsonl", "README.md"}
    assert sum(path.stat().st_size for path in _home().iterdir()) <= 5_000_000
    assert bundle.manifest.hook == "encoder.layer.3" and bundle.manifest.model == "all-MiniLM-L6-v2"
    assert bundle.manifest.allocation is not None and bundle.manifest.allocation.kind == "mutual"


def test_every_label_is_of_a_living_feature_and_names_it_alone() -> None:
    sae = load(NAME)
    assert sae.stats is not None and sae.stats.tokens > 1_000_000
    alive = np.flatnonzero(sae.stats.density).tolist()
    assert sorted(sae.labels) == alive
    read = labels.read_labels(_home())
    for feature, label in read.items():
        assert read.feature(label) == feature and len(label) <= 60
    lines = [json.loads(line) for line in (_home() / "labels.jsonl").read_text().splitlines()]
    assert sum(line["source"] == "a language model" for line in lines) >= 400  # which no person has checked
    assert {line["source"] for line in lines} == {"a language model", "top words"}


def test_a_path_on_this_machine_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ready_names() == [NAME] and local(NAME) == local(Path(NAME)) == _home()
    assert load(NAME).folder == _home()
    Path(NAME).mkdir(parents=True)
    assert local(NAME) == Path(NAME)
    for wrong in ("all-MiniLM-L6-v2/encoder.layer.4", "another/name"):
        assert refused("inspect", wrong).endswith(f", or a ready SAE: {NAME}")


def test_a_models_name_alone_is_answered_with_the_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("inspect", "all-MiniLM-L6-v2").endswith(f"or hf://owner/name, or a ready SAE: {NAME}")


@pytest.mark.filterwarnings("ignore::sae_runtime.bundle.plausible.OtherRows")
def test_every_command_that_takes_a_bundle_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", _activations(300))
    given = ("--activations", "x.npy", "--any-source")
    for command in (
        ("inspect", NAME),
        ("extract", NAME, *given, "-o", "features"),
        ("features", "build", "features", "--sae", NAME, "-o", "store", "--sample", "0"),
        ("browse", "store", "--sae", NAME, "-o", "site"),
        ("steer", NAME, *given, "--set", "files=x2", "-o", "steered.npy"),
        ("evaluate", NAME, *given, "-o", "evaluation.json"),
        ("calibrate", NAME, *given, "-o", "mine"),
        ("export-triton", NAME, "-o", "triton"),
    ):
        done = run(*command)
        assert done.exit_code == 0, done.stderr
    assert open_store("store").label(1263)[0] == "files"
    (served,) = open_all([f"mine={NAME}"])
    assert served.sae is not None and served.sae.d_sae == 1536
    served.close()
    assert open_sae(NAME).manifest == load(NAME).manifest


@pytest.mark.parametrize("name", ["..", "../ready", "all-MiniLM-L6-v2", f"{NAME}/", f"./{NAME}", f"../ready/{NAME}"])
def test_only_a_name_is_a_name(name: str) -> None:
    assert ready_path(name) is None


@pytest.mark.filterwarnings("ignore::sae_runtime.bundle.plausible.OtherRows")
def test_nothing_writes_into_the_package(others: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in others.iterdir()}
    activations = tmp_path / "x.npy"
    np.save(activations, _activations(400))
    table = tmp_path / "labels.csv"
    table.write_text("feature,label\n3,mine\n")
    given = ["--activations", str(activations), "--any-source"]
    for command in (
        ["export", NAME],
        ["calibrate", NAME, *given],
        ["evaluate", NAME, *given, "--stats"],
        ["features", "label", NAME, "--from", str(table), "--replace", "all"],
        ["calibrate", NAME, *given, "-o", str(others.parent / "mine")],
    ):
        said = refused(*command)
        assert "is a ready SAE of the installed package, which stays as it is; copy it first: cp -r " in said
    bundle = bundles.read(others)
    for write in (
        lambda: bundles.put_stats(bundle, counted(np.ones(1536, np.int64), np.ones(1536), 10)),
        lambda: export(others),
        lambda: bundles.write(others, bundle.weights(), bundle.manifest, force=True),
        lambda: labels.write_labels(others, {3: "mine"}),
        lambda: labels.put_labels(others, 1536, {3: {"feature": 3, "label": "mine"}}),
    ):
        with pytest.raises(ValueError, match="copy it first"):
            write()
    assert {path.name: path.read_bytes() for path in others.iterdir()} == before


def test_the_copy_that_the_error_names_may_be_changed(others: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        refuse_ready(others)
    words = str(refused.value).rpartition("copy it first: ")[2].split()
    assert words[:2] == ["cp", "-r"] and Path(words[2]) == others
    copy = tmp_path / words[3]
    shutil.copytree(words[2], copy)
    export(copy, graphs=())
    labels.put_labels(copy, 1536, {3: {"feature": 3, "label": "mine", "source": "me"}}, replace="all")
    assert labels.read_labels(copy)[3] == "mine"


@pytest.mark.skipif(os.name == "nt", reason="modes of files")
def test_an_installation_that_may_not_be_written_opens(others: Path) -> None:
    folders = [others, *others.parents[:2]]
    for folder in folders:
        folder.chmod(0o555)
    before = [(path, path.stat().st_mtime_ns) for path in (others.parents[1], *others.parents[1].rglob("*"))]
    try:
        assert load(NAME).encode(np.ones((3, 384))).shape == (3,)
        assert run("inspect", NAME, "--check").exit_code == 0
        after = [(path, path.stat().st_mtime_ns) for path in (others.parents[1], *others.parents[1].rglob("*"))]
        assert after == before, "root may write everywhere"
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_the_card_and_the_manifest_say_how_it_is_loaded_and_by_what_it_was_made() -> None:
    manifest, text = load(NAME).manifest, (_home() / "README.md").read_text()
    assert f'sae_runtime.load("{NAME}")' in text and "OWNER/NAME" not in text and not is_ours(text)
    begin, end = text.index("sae-runtime brings this"), text.index("\n\n| field |")
    assert text == without_seal(card(manifest, ready=NAME, paragraphs=[text[begin:end]])), "as benchmarks/ready_sae.py"
    assert manifest.told("versions", dict)["sae-runtime"] == "0.2.0"


def test_a_name_that_is_nothing_lists_the_ready_saes_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in (NAME.lower(), f"{NAME}/"):
        with pytest.raises(FileNotFoundError, match=f"to fetch it, or a ready SAE: {NAME}$"):
            local(wrong)
    monkeypatch.setattr(ready, "FOLDER", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="to fetch it$"):
        local(NAME)
