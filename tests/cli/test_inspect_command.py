import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from conftest import make_manifest, make_weights, make_x

from sae_runtime.bundle import folder as bundle
from sae_runtime.cli.inspect import describe

BundleOf = Callable[..., Path]


def test_json_holds_the_manifest(bundle_of: BundleOf, kind: str) -> None:
    path = bundle_of(kind)
    found = json.loads(run("inspect", path, "--json").stdout)
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    assert found == {"valid": True, "bundle": str(path), **manifest, "labels": 0, "card": "as sae-runtime wrote it"}
    assert found["graphs"]["encode.onnx"]["row_independent"] is True


def test_inspect_counts_labels_and_names_a_line_that_is_not_sound(copy_of: BundleOf) -> None:
    path = copy_of("mutual")
    (path / "labels.jsonl").write_text('{"feature": 3, "label": "a"}\n{"feature": 4, "label": "a"}\n')
    words = [" ".join(line.split()) for line in run("inspect", path).stdout.splitlines()]
    assert "labels of 2 features" in words
    assert json.loads(run("inspect", path, "--json").stdout)["labels"] == 2
    (path / "labels.jsonl").write_text('{"feature": 3, "label": "a"}\n{"feature": 3, "label": "b"}\n')
    said = f"line 2 of {path / 'labels.jsonl'}: feature 3 has a label in an earlier line; give it one"
    assert refused("inspect", path) == f"error: {said}"
    result = run("inspect", path, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"valid": False, "bundle": str(path), "error": said})


def test_inspect_prints_text(bundle_of: BundleOf) -> None:
    path = bundle_of("mutual")
    result = run("inspect", path)
    assert (result.exit_code, result.stderr) == (0, "")
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    sizes = {file.name: f"{file.stat().st_size:,} bytes" for file in path.iterdir()}
    assert words == [
        f"bundle {path}",
        "valid sha256 of every file, form of every graph; not what they compute: add --check",
        "source unknown",
        "architecture 24 wide, 150 features, keeps those above their threshold",
        "allocation mutual choice, k 6",
        "card README.md, as sae-runtime wrote it",
        f"files sae_weights.safetensors {sizes['sae_weights.safetensors']} sha256 ok",
        f"cfg.json {sizes['cfg.json']} sha256 ok",
        f"graphs decode.onnx {sizes['decode.onnx']} row-independent",
        f"encode.onnx {sizes['encode.onnx']} row-independent",
        f"encode_joint.onnx {sizes['encode_joint.onnx']} over the whole batch",
        f"steer.onnx {sizes['steer.onnx']} row-independent",
    ]


def test_inspect_prints_a_description() -> None:
    measured = {"fvu": 0.123456, "l0": 6.0, "tokens": 20000}
    manifest = dataclasses.replace(make_manifest(150, "token"), model="tiny", hook="layer.1", measured=measured)
    assert describe(manifest) == [
        ("source", "tiny, layer.1"),
        ("architecture", "24 wide, 150 features, keeps the top 6 of every token"),
        ("allocation", "token choice, k 6"),
        ("measured", "as served: FVU 0.1235, explained variance 0.8765, L0 6.00 on 20,000 held-out tokens"),
    ]
    budget = dict(describe(make_manifest(150, "feature")))["allocation"]
    assert budget == "feature choice, k 6, exponent 0.8, offset 3, slack 1.5"


def test_export_prints_the_graphs(tmp_path: Path) -> None:
    path = tmp_path / "sae"
    bundle.write(path, make_weights(150, "mutual"), make_manifest(150, "mutual"))
    last = run("inspect", path).stdout.splitlines()[-1]
    assert " ".join(last.split()) == f"graphs none yet; run: sae-runtime export {path}"
    shown = run("export", path)
    assert (shown.exit_code, shown.stderr) == (0, "")
    inspected = run("inspect", path).stdout.splitlines()
    assert shown.stdout.splitlines()[0] == f"bundle  {path}"
    assert [line.split() for line in shown.stdout.splitlines()[1:]] == [line.split() for line in inspected[-4:]]
    found = json.loads(run("export", path, "--json").stdout)
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    assert found == {"bundle": str(path), "graphs": manifest["graphs"]}


def test_export_makes_the_graphs_that_are_named(tmp_path: Path) -> None:
    path, x = tmp_path / "sae", tmp_path / "x.npy"
    bundle.write(path, make_weights(512, "mutual"), make_manifest(512, "mutual"))
    np.save(x, make_x(200))
    shown = run("export", path, "--activations", x, "--graph", "gpu")
    assert (shown.exit_code, shown.stderr) == (0, "")
    graphs = json.loads(run("inspect", path, "--json").stdout)["graphs"]
    assert "encode_gpu.onnx" in graphs and "encode_exact.onnx" not in graphs
    assert not (path / "encode_exact.onnx").exists() and (path / bundle.SAMPLE).exists()
    assert run("export", path, "--graph", "none").exit_code == 0
    assert not (path / "encode_gpu.onnx").exists() and not (path / bundle.DERIVED).exists()
    assert run("export", path, "--graph", "none", "--graph", "exact").exit_code == 2
    refused = run("export", path, "--graph", "int4")
    assert refused.exit_code == 2 and "'int4' is not one of 'exact', 'gpu', 'none'" in refused.stderr


@pytest.fixture
def copy(bundle_of: BundleOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_of("token"), tmp_path / "sae"))


def test_an_altered_file_is_not_valid(copy: Path) -> None:
    weights = copy / bundle.WEIGHTS
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    message = f"{weights} was altered: its sha256 differs from the manifest's; copy it again"
    assert refused("inspect", copy) == f"error: {message}"
    result = run("inspect", copy, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"valid": False, "bundle": str(copy), "error": message}
    assert result.stderr == f"error: {message}\n"


def test_an_altered_graph_is_not_valid(copy: Path) -> None:
    graph = copy / "steer.onnx"
    raw = bytearray(graph.read_bytes())
    raw[-1] ^= 1
    graph.write_bytes(raw)
    assert refused("inspect", copy).startswith(f"error: {graph} was altered: its sha256 differs from the manifest's")


def test_a_graph_without_the_weights_it_reads_is_not_valid(bundle_of: BundleOf, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_of("feature"), tmp_path / "sae"))
    (path / bundle.DERIVED).unlink()
    said = refused("inspect", path)
    assert said.startswith(f"error: {path / bundle.DERIVED} is missing; ")
    assert said.endswith(f", or run: sae-runtime export {path}")
    assert run("export", path).exit_code == 0
    assert run("inspect", path).exit_code == 0


def test_inspect_and_export_refuse_a_path_that_is_no_bundle(tmp_path: Path) -> None:
    missing, file = tmp_path / "no", tmp_path / "file"
    file.touch()
    for command in ("inspect", "export"):
        assert refused(command, missing) == (
            f"error: {missing} does not exist; name a path on this machine, or hf://owner/name"
        )
        assert refused(command, file) == (
            f"error: {file} is not a folder; a bundle is the folder that `sae-runtime train` writes"
        )
        assert refused(command, tmp_path).startswith(f"error: {tmp_path} holds no sae_runtime.json, so it is not a ")


def test_inspect_refuses_a_url_that_is_not_of_the_hub(tmp_path: Path) -> None:
    assert refused("inspect", f"file://{tmp_path}") == (
        f"error: file://{tmp_path} is a URL that sae-runtime cannot read; name a path on this machine, or hf://owner/name"
    )
