"""What a splice leaves for a deployment: the part that gives features, shared weights, tokenizer, bundles."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import refused
from command_line import run as run_command
from conftest import D_IN, make_manifest, make_weights
from made_hosts import WORDS, host, stream
from tiny_host import HOOKS, Arrays, host_graph, no_past, open_plainly, run, some_ids

from sae_runtime import Edit
from sae_runtime.bundle import folder
from sae_runtime.bundle.folder import BundleError
from sae_runtime.bundle.graph_reader import read_metadata, read_ports
from sae_runtime.bundle.splices import CUT_OF, read_splices
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.splicing import Splice, splice

BundleOf = Callable[..., Path]
IDS = np.array([[1, 2, 3, 11], [4, 5, 0, 7], [9, 9, 1, 3]])
D_SAE = 150


def part_of(graph: Path, feed: Arrays) -> Arrays:
    """What the part of a graph gives; inputs that it does not have are left out."""
    part = graph.with_name("features.onnx" if graph.name == "model.onnx" else f"{graph.stem}_features.onnx")
    session = open_plainly(part, False)
    taken = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    return run(part, {name: array for name, array in feed.items() if name in taken})


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("required", [False, True])
def test_the_part_gives_the_bits_of_the_whole_and_lacks_what_it_does_not_need(
    bundle_of: BundleOf, tmp_path: Path, kind: str, required: bool
) -> None:
    wanted = Splice(bundle=bundle_of("mutual"), hook=HOOKS[kind], required=required)
    made = splice(host_graph(kind), [wanted], tmp_path / "out")
    feed = some_ids(3, 7) | (no_past(3) if kind == "gpt2" else {}) | {"sae_slots": np.array([24])}
    neutral = {**as_inputs([[]], D_SAE), "gate": np.ones((1, 1, 1), np.float32), "when": np.empty((1, 0), np.int64)}
    neutral |= {"direction": np.zeros((1, 1, 1), np.float32), "above": np.zeros((1, 0), np.float32)}
    whole = run(made.path, feed | ({f"sae_{name}": array for name, array in neutral.items()} if required else {}))
    found = part_of(made.path, feed)
    assert set(found) == {"sae_indices", "sae_values"} and (found["sae_values"] > 0).any()
    assert all(np.array_equal(found[name], whole[name]) for name in found)
    inputs, outputs = read_ports(tmp_path / "out" / "features.onnx")
    assert [name for name in inputs if name.startswith("sae_")] == ["sae_slots"]
    assert ("past_key_values.0.value" in inputs) == (kind == "gpt2")
    assert "past_key_values.1.value" not in inputs, "the second layer is left out"
    metadata = read_metadata(tmp_path / "out" / "features.onnx")
    assert metadata[CUT_OF] == folder.record(made.path).sha256
    assert read_splices(metadata)["sae"].inputs == ("sae_slots",)
    with pytest.raises(ValueError, match="is the part of a graph that gives features; name the whole graph"):
        splice(tmp_path / "out" / "features.onnx", [wanted], tmp_path / "again")


def test_the_part_keeps_the_edits_that_change_what_a_later_sae_reads(bundle_of: BundleOf, tmp_path: Path) -> None:
    host(tmp_path / "host.onnx")
    early = Splice(bundle=bundle_of("mutual"), hook="layer.0", name="early", read=False)
    late = Splice(bundle=bundle_of("token"), hook="layer.1", name="late")
    made = splice(tmp_path / "host.onnx", [early, late], tmp_path / "out")
    edits = as_inputs([[Edit.set(1, 9.0)], [], [Edit.add(2, 7.0)]], D_SAE)
    feed = {"ids": IDS, "late_slots": np.array([6])} | {f"early_{name}": array for name, array in edits.items()}
    plain, whole = part_of(made.path, {"ids": IDS, "late_slots": np.array([6])}), run(made.path, feed)
    found = part_of(made.path, feed)
    assert all(np.array_equal(found[name], whole[name]) for name in ("late_indices", "late_values"))
    assert not np.array_equal(found["late_values"], plain["late_values"])
    splices = read_splices(read_metadata(tmp_path / "out" / "features.onnx"))
    assert "early_features" in splices["early"].inputs and "late_slots" in splices["late"].inputs


def test_a_splice_that_only_edits_has_no_part_and_removes_the_older_one(bundle_of: BundleOf, tmp_path: Path) -> None:
    host(tmp_path / "host.onnx")
    wanted = Splice(bundle=bundle_of("mutual"), hook="layer.0")
    assert splice(tmp_path / "host.onnx", [wanted], tmp_path / "out").features == tmp_path / "out" / "features.onnx"
    edits = Splice(bundle=bundle_of("mutual"), hook="layer.0", read=False)
    assert splice(tmp_path / "host.onnx", [edits], tmp_path / "out", force=True).features is None
    assert not (tmp_path / "out" / "features.onnx").exists()
    (tmp_path / "out" / "features.onnx").write_bytes((tmp_path / "host.onnx").read_bytes())  # somebody's own graph
    splice(tmp_path / "host.onnx", [edits], tmp_path / "out", force=True)
    assert (tmp_path / "out" / "features.onnx").exists()


def test_a_host_with_the_name_of_the_part_is_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    host(tmp_path / "features.onnx")
    before = (tmp_path / "features.onnx").read_bytes()
    with pytest.raises(ValueError, match="has the name of the part of the new graph"):
        splice(
            tmp_path / "features.onnx",
            [Splice(bundle=bundle_of("mutual"), hook="layer.0")],
            tmp_path / "model.onnx",
            force=True,
        )
    assert (tmp_path / "features.onnx").read_bytes() == before


def large_host(path: Path) -> Path:
    """A host that holds 1.2 MB of weights itself, of which the part needs as much."""
    model = onnx.load(host(path))
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "words")
    words = onnx.numpy_helper.to_array(table)
    more = np.concatenate([words, np.zeros((12_500, D_IN), np.float32)])
    table.CopyFrom(onnx.numpy_helper.from_array(more, "words"))
    onnx.save(model, path)
    return path


def test_weights_inside_a_host_lie_once_on_the_disk(bundle_of: BundleOf, tmp_path: Path) -> None:
    graph = large_host(tmp_path / "host.onnx")
    wanted = [Splice(bundle=bundle_of("mutual"), hook="layer.0")]
    made = splice(graph, wanted, tmp_path / "out")
    (weights,) = (tmp_path / "out").glob("host_weights.*.data")
    assert weights.stat().st_size > 1 << 20
    assert made.path.stat().st_size + (tmp_path / "out" / "features.onnx").stat().st_size < 200_000
    found = run(made.path, {"ids": IDS, "sae_slots": np.array([24])})
    np.testing.assert_array_equal(found["out"], run(graph, {"ids": IDS})["out"])
    np.testing.assert_allclose(found["out"], stream(IDS, 2), atol=1e-4)
    part = part_of(made.path, {"ids": IDS, "sae_slots": np.array([24])})
    assert all(np.array_equal(part[name], found[name]) for name in part)
    onnx.checker.check_model(made.path)
    before = weights.stat()
    splice(graph, wanted, tmp_path / "out" / "other.onnx")
    assert weights.stat() == before and len(list((tmp_path / "out").glob("*.data"))) == 1
    edits = splice(graph, [Splice(bundle=bundle_of("mutual"), hook="layer.0", read=False)], tmp_path / "edits")
    assert not list((tmp_path / "edits").glob("*.data")), "one graph alone keeps its weights"
    assert WORDS < 12_500 and edits.features is None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A host with the files of a model beside it, and others."""
    home = tmp_path / "model"
    host(home / "host.onnx", external="host.data")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "vocab.txt",
        "chat_template.jinja",
        "NOTICE",
    ):
        (home / name).write_text("{}")
    (home / "README.md").write_text("the host's card")
    (home / "1_Pooling").mkdir()
    (home / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (home / "modules.json").write_text(json.dumps(modules))
    for name in ("modeling.py", "pytorch_model.bin", "model.safetensors", "notes.txt"):
        (home / name).write_text("no part of it")
    return home


def test_a_new_folder_is_a_whole_model_and_holds_nothing_else(model: Path, bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "elsewhere" / "mine"))
    (bundle / "labels.jsonl").write_text('{"feature": 3, "label": "three"}\n')
    (bundle / "README.md").write_text("the SAE's card")
    (bundle / "notes.txt").write_text("no part of it")
    out = tmp_path / "out"
    made = splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], out)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        *("model.onnx", "features.onnx", "host.data", "tokenizer.json", "tokenizer_config.json", "config.json"),
        *("vocab.txt", "chat_template.jinja", "NOTICE", "README.md", "README-sae.md", "modules.json"),
        "1_Pooling/config.json",
        *(f"sae/{path.name}" for path in bundle.iterdir() if path.name != "notes.txt"),
    }
    assert set(made.beside) | set(made.files) | {"model.onnx", "features.onnx"} == names
    assert all(path.stat().st_nlink == 1 for path in out.rglob("*") if path.is_file()), "onnx refuses second names"
    onnx.checker.check_model(made.path)
    shutil.rmtree(model)
    shutil.rmtree(bundle)
    assert folder.read(out / "sae").stats() is None
    assert "labels of 1 features" in run_command("inspect", out).stdout


def test_weights_that_a_graph_reads_in_a_bundle_are_not_replaced(
    model: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = splice(model / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="layer.0")], out)
    assert made.splices[0].file == "sae/sae_weights.safetensors"
    expected = run(made.path, {"ids": IDS}, read=True)
    with pytest.raises(BundleError, match=r"sae holds weights that model\.onnx reads; copy the bundle"):
        export(out / "sae")
    with pytest.raises(FileExistsError, match=r"sae holds weights that model\.onnx reads, which would be lost"):
        folder.write(out / "sae", make_weights(D_SAE, "token"), make_manifest(D_SAE, "token"), force=True)
    assert "weights that model.onnx reads" in refused("export", out / "sae")
    open_plainly.cache_clear()
    assert all((run(made.path, {"ids": IDS}, read=True)[name] == expected[name]).all() for name in expected)
    # Another splice of the copy into another folder reads a copy of its own.
    other = splice(made.path, [Splice(bundle=out / "sae", hook="layer.1", name="late")], tmp_path / "other")
    assert read_splices(read_metadata(other.path))["sae"].file == "late/sae_weights.safetensors"
    shutil.rmtree(out)
    open_plainly.cache_clear()
    assert (run(other.path, {"ids": IDS}, read=True)["sae_values"] == expected["sae_values"]).all()


def test_another_bundle_of_the_name_and_what_people_wrote_stay(
    model: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    splice(model / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="layer.0")], out)
    (out / "README.md").write_text("my card")
    (out / "sae" / "labels.jsonl").write_text('{"feature": 3, "label": "mine"}\n')
    before = {path: path.read_bytes() for path in (out / "sae").iterdir()}
    again = splice(model / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="layer.0")], out, force=True)
    other = splice(model / "host.onnx", [Splice(bundle=bundle_of("token"), hook="layer.0")], out, force=True)
    assert again.splices[0].bundle == "sae" and str(other.splices[0].bundle).startswith("sae-")
    assert {path: path.read_bytes() for path in (out / "sae").iterdir()} == before
    assert (out / "README.md").read_text() == "my card"


def test_the_files_of_another_model_are_not_replaced(model: Path, bundle_of: BundleOf, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"of": "another"}')
    wanted = [Splice(bundle=bundle_of("mutual"), hook="layer.0")]
    for force in (False, True):
        with pytest.raises(FileExistsError, match=r"config\.json is that of another model; name a folder for this"):
            splice(model / "host.onnx", wanted, out, force=force)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    (out / "config.json").unlink()
    splice(model / "host.onnx", wanted, out)
    (model / "config.json").write_text('{"of": "a later release"}')
    with pytest.raises(FileExistsError, match="pass --force to replace it"):
        splice(model / "host.onnx", wanted, out)
    splice(model / "host.onnx", wanted, out, force=True)
    assert json.loads((out / "config.json").read_text()) == {"of": "a later release"}


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json"])
def test_a_file_that_is_a_link_out_of_the_folder_is_refused(
    model: Path, bundle_of: BundleOf, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret.json").write_text("[]")
    (model / name).unlink()
    (model / name).symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        splice(model / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="layer.0")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_new_folder_appears_whole_or_not_at_all(
    model: Path, bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def copy(source: Any, target: Any, **settings: Any) -> Any:
        seen.append(os.path.lexists(tmp_path / "out"))
        if len(seen) == 4:
            raise OSError(28, "No space left on device")
        return copyfile(source, target, **settings)

    copyfile = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(OSError, match="No space"):
        splice(model / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="layer.0")], tmp_path / "out")
    assert not any(seen) and not list(tmp_path.glob(".out*")) and not (tmp_path / "out").exists()


def test_doctor_runs_the_part_and_says_what_works(model: Path, bundle_of: BundleOf, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (model / "modules.json").unlink()
    made = splice(model / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="layer.0")], out)
    said = json.loads(run_command("doctor", out, "--json").stdout)
    assert said["warnings"] == [] and said["features"] == str(out / "features.onnx")
    assert list(said["does"]) == ["load_model"] and "tokenizer" in said["does"]["load_model"]
    other = splice(model / "host.onnx", [Splice(bundle=bundle_of("mutual"), hook="layer.1")], tmp_path / "other")
    part = onnx.load(tmp_path / "other" / "features.onnx", load_external_data=False)
    for entry in part.metadata_props:
        if entry.key == CUT_OF:
            entry.value = folder.record(made.path).sha256  # as a stranger could write it
    (out / "features.onnx").write_bytes(part.SerializeToString())
    said = json.loads(run_command("doctor", out, "--json").stdout)
    assert said["warnings"] == [f"{out / 'features.onnx'} gives other features than {made.path}; splice the host again"]
    shutil.copy(other.path, out / "model.onnx")
    said = run_command("doctor", out)
    assert said.exit_code == 0 and "was cut of another graph than" in said.stdout and "part" not in said.stdout.split()
    assert "kind       model that gives out" in run_command("inspect", out).stdout
