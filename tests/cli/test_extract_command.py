import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from command_line import misused, refused, run
from conftest import make_manifest, make_weights, make_x
from resealed import changed
from word_model import deploy_words

from sae_runtime import load
from sae_runtime.activations import stored
from sae_runtime.bundle import folder as bundle
from sae_runtime.exports.export import export
from sae_runtime.extraction import tasks
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.part_files import write_part

BundleOf = Callable[..., Path]


@pytest.fixture
def acts(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", make_x(50))
    return tmp_path / "x.npy"


def values_of(folder: Path) -> str:
    return str(pq.read_schema(folder / "tokens" / "part-00000.parquet").field("values").type.value_type)


def test_extract_writes_features_and_prints_their_numbers(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    path, out = bundle_of("mutual"), tmp_path / "f"
    result = run("extract", path, "--activations", acts, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    matches = len(load(path).encode(make_x(50)).indices)
    words = [" ".join(line.split()) for line in result.stdout.splitlines()]
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert words == [
        f"features {out}",
        f"rows 50 tokens, {matches} matches ({matches / 50:.4g} a token)",
        f"size {size:,} bytes in 1 part",
    ]
    assert values_of(out) == "float"
    again = run("extract", path, "--activations", acts, "-o", out)
    assert (again.exit_code, again.stdout) == (0, result.stdout)


def test_extract_takes_rule_and_values_and_prints_json(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    out = tmp_path / "f"
    settings = ("--rule", "batch", "--values", "float16", "--threads", "1", "--json")
    result = run("extract", bundle_of("mutual"), "--activations", acts, "-o", out, *settings)
    printed = json.loads(result.stdout)
    assert printed.pop("size") == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    numbers = {"tokens": 50, "documents": 0, "rows": 50, "matches": 6 * 50, "parts": 1}
    assert printed == {"features": str(out), **numbers} and values_of(out) == "halffloat"


def test_extract_reads_the_texts_that_a_shell_names(bundle_of: BundleOf, tmp_path: Path) -> None:
    model = deploy_words(tmp_path / "model", bundle_of("mutual"))
    for name, texts in {"a": ["w4 w5", "w6"], "b": ["w7"], "c": ["w8 w8 w8"]}.items():
        lines = [json.dumps({"text": text, "name": name, "n": len(text)}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    settings = ("--id-field", "name", "--columns", "n", "--licence", "CC0", "-q")
    result = run("extract", model, "--text", *files, "-o", tmp_path / "f", *settings)
    assert (result.exit_code, result.stderr) == (0, "")
    assert " ".join(result.stdout.splitlines()[1].split()).startswith("rows 7 tokens of 4 documents, ")
    apart = [word for file in files for word in ("--text", file)]
    assert run("extract", *apart, model, "-o", tmp_path / "g", *settings).exit_code == 0
    found = [pq.read_table(tmp_path / out / "documents" / "part-00000.parquet").to_pydict() for out in "fg"]
    assert found[0] == found[1] and found[0]["file"] == [str(files[i]) for i in (0, 0, 1, 2)]
    assert (found[0]["id"], found[0]["n"], found[0]["licence"]) == (["a", "a", "b", "c"], [5, 2, 2, 8], ["CC0"] * 4)
    pooled = ("--per", "document", "--pool", "sum", "--no-text", "--values", "float16", "-q")
    result = run("extract", model, "--text", files[0], "-o", tmp_path / "h", *pooled)
    assert "a document)" in result.stdout and not (tmp_path / "h" / "tokens").exists()


def test_extract_refuses_options_that_do_not_go_together(bundle_of: BundleOf, acts: Path, tmp_path: Path) -> None:
    bundle, out = bundle_of("mutual"), ("-o", tmp_path / "f")
    model = deploy_words(tmp_path / "model", bundle)
    (tmp_path / "a.txt").write_text("w4")
    text, rows = ("--text", tmp_path / "a.txt"), ("--activations", acts)
    assert misused("extract", model, *text, *rows, *out) == "Give --text or --activations, not both."
    for given, said in {
        (*text, "--graph", "encode.onnx"): "--graph goes with --activations, not with --text.",
        (*text, "--any-source"): "--any-source goes with --activations, not with --text.",
        (*text, "--format", "delphi"): "--format goes with --activations, not with --text.",
        (*rows, "--context", "9"): "--context goes with --text, not with --activations.",
        (*rows, "--columns", "a"): "--columns goes with --text, not with --activations.",
        (*rows, "--no-text"): "--no-text goes with --text, not with --activations.",
        (*rows, "--no-special"): "--special goes with --text, not with --activations.",
        (*rows, "--sequence", "9"): "--sequence goes with --format delphi.",
        (*text, "--pool", "sum"): "--pool goes with --per document.",
        (*rows, "--format", "delphi", "--per", "document"): "--per goes with --format parquet.",
        (*rows, "--format", "delphi", "--licence", "CC0"): "--licence goes with --format parquet.",
    }.items():
        assert misused("extract", bundle, *given, *out) == said
    assert refused("extract", bundle, *text, *out) == (
        f"error: {bundle} is a bundle, which reads --activations; for --text name a model that it was spliced into"
    )
    assert refused("extract", model, *rows, *out) == (
        f"error: {model} is a deployed model, which reads --text; for --activations name its bundle, {model / 'sae'}"
    )
    assert not (tmp_path / "f").exists()


def test_extract_refuses_an_output_whose_name_does_not_fit_the_format(
    bundle_of: BundleOf, acts: Path, tmp_path: Path
) -> None:
    path = bundle_of("mutual")
    assert refused("extract", path, "--activations", acts, "-o", tmp_path / "f.parquet") == (
        f"error: {tmp_path / 'f.parquet'} ends in .parquet, but features are a folder of Parquet files; name a folder"
    )
    known = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"activations": make_x(50), "tokens": np.arange(50, dtype=np.int32)}, known)
    said = refused("extract", path, "--activations", known, "-o", tmp_path / "cache", "--format", "delphi")
    assert said == (
        f"error: delphi keeps features in a folder named by their hook, but that of {known} is not known; "
        "harvest the activations from text"
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
    path, out = bundle_of("mutual"), tmp_path / "f"
    out.mkdir()
    (out / "notes").write_text("mine")

    def opened(path: Path) -> None:
        pytest.fail("the activations were opened before the output was checked")

    with monkeypatch.context() as patch:
        patch.setattr(stored, "open_activations", opened)
        said = refused("extract", path, "--activations", acts, "-o", out)
        assert said == f"error: {out} holds notes, which extract did not write; name another output"
        said = refused("extract", path, "--activations", acts, "-o", acts, "--force")
        assert said == f"error: the output {acts} is or holds the activations {acts}; name another output"
        said = refused("extract", path, "--activations", acts, "-o", path.parent, "--force")
        assert said == f"error: the output {path.parent} is or holds the bundle {path}; name another output"
    assert (out / "notes").read_text() == "mine"


def test_extract_refuses_inputs_that_do_not_fit_in_one_sentence(
    bundle_of: BundleOf, acts: Path, tmp_path: Path
) -> None:
    path, out = bundle_of("mutual"), tmp_path / "f"
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


def test_an_interrupt_of_extract_says_how_to_go_on(
    bundle_of: BundleOf, acts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, written = bundle_of("mutual"), tmp_path / "f", list[str]()
    monkeypatch.setitem(ArraySource.__init__.__kwdefaults__ or {}, "part", 20)

    def interrupted(*given: Any, **settings: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append("one")
        write_part(*given, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_part", interrupted)
        result = run("extract", path, "--activations", acts, "-o", out)
    said = f"interrupted; {out} is kept; the same command goes on from there\n"
    assert (result.exit_code, result.stderr) == (130, said)
    assert run("extract", path, "--activations", acts, "-o", out).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "write_part", interrupted)
        result = run("extract", path, "--activations", acts, "-o", tmp_path / "g")
    assert (result.exit_code, result.stderr) == (130, "interrupted; nothing was left half written\n")
    assert not (tmp_path / "g").exists()


def test_settings_of_extract_come_from_flag_then_environment_then_file(
    bundle_of: BundleOf, acts: Path, tmp_path: Path
) -> None:
    def rule_and_values(name: str, *flags: str, env: dict[str, str] | None = None) -> list[str]:
        arguments = ("--activations", acts, "-o", tmp_path / name)
        assert run("extract", bundle_of("mutual"), *arguments, *flags, env=env).exit_code == 0
        description = json.loads((tmp_path / name / "features.json").read_text())
        return [description["rule"], description["values"]]

    file = tmp_path / "run.toml"
    file.write_text('[extract]\nrule = "batch"\nvalues = "float16"\n')
    toml = ("--config", str(file))
    env = {"SAE_RUNTIME_EXTRACT_RULE": "served"}
    assert rule_and_values("1") == ["served", "float24"]
    assert rule_and_values("2", *toml) == ["batch", "float16"]
    before = (
        "--config",
        file,
        "extract",
        bundle_of("mutual"),
        "--activations",
        acts,
        "-o",
        tmp_path / "before",
    )
    assert run(*before).exit_code == 0
    description = json.loads((tmp_path / "before" / "features.json").read_text())
    assert [description["rule"], description["values"]] == ["batch", "float16"]
    assert rule_and_values("3", *toml, env=env) == ["served", "float16"]
    assert rule_and_values("4", *toml, "--rule", "batch", env=env) == ["batch", "float16"]
    file.write_text("[extract]\nrul = 'batch'\n")
    said = misused("extract", bundle_of("mutual"), *toml)
    assert said.startswith(f"Invalid value for '--config': {file}: rul in [extract] is no setting, expected text, ")
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
    arguments = ("extract", path, "--activations", x, "-o", tmp_path / "f", "--graph")
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
