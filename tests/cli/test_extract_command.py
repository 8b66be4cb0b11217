import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from command_line import misused, refused, run
from conftest import make_manifest, make_weights, make_x
from resealed import changed

from sae_runtime import load
from sae_runtime.activations import stored
from sae_runtime.bundle import folder as bundle
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(50))
    return tmp_path / "x.npy"


def test_extract_writes_features_and_prints_their_numbers(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    path, out = bundle_of("mutual"), tmp_path / "f.parquet"
    result = run("extract", path, "--activations", acts, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    matches = len(load(path).encode(make_x(50)).indices)
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert words == [
        f"features {out}",
        f"rows 50 tokens, {matches} matches ({matches / 50:.4g} a token)",
        f"size {out.stat().st_size:,} bytes",
    ]
    assert pq.read_schema(out).field("values").type.value_type == "float"


def test_extract_takes_rule_and_values_and_prints_json(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    settings = ("--rule", "batch", "--values", "float16", "--threads", "1", "--json")
    result = run("extract", bundle_of("mutual"), "--activations", acts, "-o", out, *settings)
    size = out.stat().st_size
    assert json.loads(result.stdout) == {"features": str(out), "tokens": 50, "matches": 6 * 50, "size": size}
    assert pq.read_schema(out).field("values").type.value_type == "halffloat"


def test_extract_refuses_an_output_whose_name_does_not_fit_the_format(
    bundle_of: BundleOf, acts: Path, tmp_path: Path
) -> None:
    path = bundle_of("mutual")
    assert refused("extract", path, "--activations", acts, "-o", tmp_path / "f.npz") == (
        f"error: {tmp_path / 'f.npz'} does not end in .parquet; name a .parquet file, or a folder with --format delphi"
    )
    known = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"activations": make_x(50), "tokens": np.arange(50, dtype=np.int32)}, known)
    said = refused("extract", path, "--activations", known, "-o", tmp_path / "cache", "--format", "delphi")
    assert said == (
        f"error: delphi keeps features in a folder named by their hook, but that of {known} is not known; "
        "harvest the activations, or choose --format parquet"
    )
    assert not (tmp_path / "cache").exists()
    harvested = tmp_path / "acts"
    harvested.mkdir()
    known.rename(harvested / "shard-00000.safetensors")
    index = {"format_version": 1, "shards": [{"file": "shard-00000.safetensors", "rows": 50}], "d_in": 24}
    (harvested / "activations.json").write_text(json.dumps({**index, "model": None, "hook": "layer.1"}))
    arguments = ("--activations", harvested, "-o", tmp_path / "cache", "--format", "delphi", "--sequence", "20")
    result = run("extract", path, *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert words[1].startswith("rows 40 tokens, ") and words[3] == "left out 10 tokens, which do not fill a sequence"
    assert len(list((tmp_path / "cache" / "layer.1").glob("*.safetensors"))) == 5


def test_extract_refuses_an_output_before_it_opens_activations(
    bundle_of: BundleOf, acts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = bundle_of("mutual"), tmp_path / "f.parquet"
    out.write_text("mine")

    def opened(path: Path) -> None:
        pytest.fail("the activations were opened before the output was checked")

    with monkeypatch.context() as patch:
        patch.setattr(stored, "open_activations", opened)
        said = refused("extract", path, "--activations", acts, "-o", out)
        assert said == f"error: {out} already exists; pass --force to replace it"
        said = refused("extract", path, "--activations", acts, "-o", acts, "--force")
        assert said == f"error: the output {acts} is or holds the activations {acts}; name another output"
        said = refused("extract", path, "--activations", acts, "-o", path.parent, "--force")
        assert said == f"error: the output {path.parent} is or holds the bundle {path}; name another output"
    assert out.read_text() == "mine"
    assert run("extract", path, "--activations", acts, "-o", out, "--force").exit_code == 0
    assert pq.read_table(out).num_rows == 50


def test_extract_refuses_inputs_that_do_not_fit_in_one_sentence(
    bundle_of: BundleOf, acts: Path, tmp_path: Path
) -> None:
    path, out = bundle_of("mutual"), tmp_path / "f.parquet"
    said = refused("extract", path, "--activations", tmp_path / "no", "-o", out)
    assert said.startswith(f"error: {tmp_path / 'no'} does not exist; expected a folder of harvest, or one of .npy")
    bare = tmp_path / "bare"
    bundle.write(bare, make_weights(150, "token"), make_manifest(150, "token"))
    said = refused("extract", bare, "--activations", acts, "-o", out)
    assert said == f"error: {bare} has no encode.onnx: not exported yet; run: sae-runtime export {bare}"
    export(bare)
    np.save(acts, np.zeros((3, 7), np.float32))
    said = refused("extract", bare, "--activations", acts, "-o", out)
    assert said == f"error: {acts}: activations have d_in 7, this SAE expects 24; was another layer captured?"
    said = refused("extract", bare, "--activations", acts, "-o", out, "--provider", "NoProvider")
    assert said.startswith("error: the execution providers must be some of ") and "got NoProvider; run" in said
    assert misused("extract", bare, "--activations", acts, "-o", out, "--values", "int8").startswith(
        "Invalid value for '--values': 'int8' is not one of "
    )
    assert not out.exists()


def test_an_interrupt_of_extract_leaves_no_file(
    bundle_of: BundleOf, acts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pyarrow, "record_batch", interrupted)
    result = run("extract", bundle_of("mutual"), "--activations", acts, "-o", tmp_path / "f.parquet")
    assert (result.exit_code, result.stderr) == (130, "interrupted; nothing was left half written\n")
    assert list(tmp_path.iterdir()) == [acts]


def test_settings_of_extract_come_from_flag_then_environment_then_file(
    bundle_of: BundleOf, acts: Path, tmp_path: Path
) -> None:
    def rule_and_values(name: str, *flags: str, env: dict[str, str] | None = None) -> list[str]:
        arguments = ("--activations", acts, "-o", tmp_path / f"{name}.parquet")
        assert run("extract", bundle_of("mutual"), *arguments, *flags, env=env).exit_code == 0
        description = json.loads(pq.read_metadata(tmp_path / f"{name}.parquet").metadata[b"sae_runtime"])
        return [description["rule"], description["values"]]

    file = tmp_path / "run.toml"
    file.write_text('[extract]\nrule = "batch"\nvalues = "float16"\n')
    toml = ("--config", str(file))
    env = {"SAE_RUNTIME_EXTRACT_RULE": "served"}
    assert rule_and_values("1") == ["served", "float32"]
    assert rule_and_values("2", *toml) == ["batch", "float16"]
    before = (
        "--config",
        file,
        "extract",
        bundle_of("mutual"),
        "--activations",
        acts,
        "-o",
        tmp_path / "before.parquet",
    )
    assert run(*before).exit_code == 0
    description = json.loads(pq.read_metadata(tmp_path / "before.parquet").metadata[b"sae_runtime"])
    assert [description["rule"], description["values"]] == ["batch", "float16"]
    assert rule_and_values("3", *toml, env=env) == ["served", "float16"]
    assert rule_and_values("4", *toml, "--rule", "batch", env=env) == ["batch", "float16"]
    file.write_text("[extract]\nrul = 'batch'\n")
    said = misused("extract", bundle_of("mutual"), *toml)
    assert said.startswith(
        f"Invalid value for '--config': {file}: rul in [extract] is no setting, expected activations,"
    )
    file.write_text("[fly]\n")
    said = misused("extract", bundle_of("mutual"), *toml)
    assert said.startswith(
        f"Invalid value for '--config': {file}: fly is not the table of a command, expected [harvest],"
    )


def test_extract_encodes_by_the_named_graph_and_refuses_one_that_is_missing(
    bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    path, x = bundle_of("mutual"), tmp_path / "x.npy"
    np.save(x, make_x(20))
    arguments = ("extract", path, "--activations", x, "-o", tmp_path / "f.parquet", "--graph")
    assert run(*arguments, "encode.onnx").exit_code == 0
    assert "has no encoder graph 'encode_gpu.onnx', expected encode.onnx;" in refused(
        *arguments, "encode_gpu.onnx", "--force"
    )


def test_a_fault_of_the_bundle_is_not_blamed_on_the_rows(
    copy_of: Callable[..., Path], acts: Path, tmp_path: Path
) -> None:
    path = changed(copy_of("mutual"), "steer.onnx", lambda graph: graph.replace(b"MatMul", b"MatMuk"))
    said = refused("steer", path, "--activations", acts, "--set", "3=8", "-o", tmp_path / "y.npy")
    assert said.startswith("error: steer.onnx is not a graph that sae-runtime writes for this SAE")
