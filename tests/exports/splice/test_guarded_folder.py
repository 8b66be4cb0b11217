"""What a folder of deployed models keeps: weights that its graphs read; and what never goes into it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run as run_command
from made_hosts import host
from tiny_host import run

from sae_runtime.bundle.folder import BundleError
from sae_runtime.bundle.model_files import refuse_shared
from sae_runtime.deployed.layout import read_layout
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.splicing import Splice, splice

BundleOf = Callable[..., Path]
IDS = np.array([[1, 2, 3, 11], [4, 5, 0, 7]])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a host and its weights."""
    host(tmp_path / "model" / "host.onnx", external="host.data")
    return tmp_path / "model"


@pytest.fixture
def wanted(bundle_of: BundleOf) -> list[Splice]:
    return [Splice(bundle=bundle_of("mutual"), hook="layer.0")]


def test_a_copy_of_a_nested_bundle_and_one_behind_a_link_are_not_changed(
    model: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    nested = Path(shutil.copytree(bundle_of("mutual"), model / "saes" / "wide"))
    first = splice(model / "host.onnx", [Splice(bundle=nested, hook="layer.0")])
    late = Splice(bundle=bundle_of("token"), hook="layer.1", name="late")
    made = splice(first.path, [late], tmp_path / "new")
    assert read_layout(made.path).splices["sae"].file == "wide/sae_weights.safetensors"
    (tmp_path / "link").symlink_to(tmp_path / "new" / "wide")
    for copy in (tmp_path / "new" / "wide", tmp_path / "link"):
        with pytest.raises(BundleError, match=r"holds weights that model\.onnx reads; copy the bundle"):
            export(copy)
    # A graph above the folder of that copy reads weights of its own: nobody would look for it from there.
    above = splice(made.path, [Splice(bundle=bundle_of("token"), hook="layer.1", name="more")], tmp_path / "all.onnx")
    assert not any(one.reads_bundle for name, one in read_layout(above.path).splices.items() if name != "more")


def test_weights_that_another_graph_of_the_folder_reads_are_not_replaced(
    model: Path, wanted: list[Splice], tmp_path: Path
) -> None:
    first = splice(model / "host.onnx", wanted, tmp_path / "out" / "a.onnx")
    before = run(first.path, {"ids": IDS})["out"]
    other = tmp_path / "other" / "host.onnx"
    other.parent.mkdir()
    graph = onnx.load(model / "host.onnx")
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(graph, str(other), save_as_external_data=True, location="host.data", size_threshold=0)
    for force in (False, True):
        with pytest.raises(FileExistsError, match=r"host\.data holds weights that a\.onnx reads, and other ones would"):
            splice(other, wanted, tmp_path / "out" / "b.onnx", force=force)
    np.testing.assert_array_equal(run(first.path, {"ids": IDS})["out"], before)
    shutil.copy(model / "host.data", tmp_path / "same.data")
    refuse_shared(model / "host.data", tmp_path / "same.data", model / "host.onnx")
    # export-model asks the same of the weights that it would replace.
    spliced = splice(model / "host.onnx", wanted).path
    with pytest.raises(FileExistsError, match=r"reads, and other ones would replace them; name another folder, or rem"):
        refuse_shared(model / "host.data", other.parent / "host.data", model / "host.onnx")
    spliced.unlink()
    refuse_shared(model / "host.data", other.parent / "host.data", model / "host.onnx")


def test_a_folder_of_genai_gives_what_its_configuration_names_and_no_secrets(
    model: Path, wanted: list[Splice], tmp_path: Path
) -> None:
    host(model / "embedding.onnx", external="embedding.data")
    (model / "speech.json").write_text("{}")
    config: dict[str, Any] = {"decoder": {"filename": "host.onnx"}, "embedding": {"filename": "embedding.onnx"}}
    config |= {"speech": {"config_filename": "speech.json", "more": ["../secret", "absent.json", 3, None, ""]}}
    (model / "genai_config.json").write_text(json.dumps({"model": config}))
    for name in (".env", "token", "pytorch_model.bin", "model.safetensors", "notes.txt"):
        (model / name).write_text("no part of it")
    out = splice(model / "host.onnx", wanted, tmp_path / "out").path.parent
    assert {path.name for path in out.iterdir()} == {
        *("genai_config.json", "host.onnx", "host_features.onnx", "host.data", "sae", "README.md"),
        *("embedding.onnx", "embedding.data", "speech.json"),
    }


def test_a_spliced_graph_that_the_configuration_does_not_name_is_told(model: Path, wanted: list[Splice]) -> None:
    (model / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "host.onnx"}}}))
    splice(model / "host.onnx", wanted)
    layout = read_layout(model)
    assert layout.graph == model / "host.onnx"
    assert layout.notes == (
        f"{model / 'genai_config.json'} names host.onnx, which has no SAE; name host_sae.onnx for the SAEs in it",
    )


def test_a_damaged_part_is_not_used_and_lost_weights_of_the_host_are_found(
    model: Path, wanted: list[Splice], tmp_path: Path
) -> None:
    out = splice(model / "host.onnx", wanted, tmp_path / "out").path.parent
    (out / "features.onnx").write_bytes(b"rubbish")
    layout = read_layout(out)
    assert layout.features is None and "features.onnx is no readable graph, so features run" in layout.notes[0]
    assert run_command("inspect", out).exit_code == 0
    os.truncate(out / "host.data", 100)
    assert "host.data, which has 100; copy the model again" in run_command("inspect", out).stderr.replace("'", "")
    (out / "host.data").unlink()
    assert "host.data is missing" in run_command("inspect", out).stderr
    (out / "model.onnx").write_bytes(b"rubbish")
    said = json.loads(run_command("inspect", out / "model.onnx", "--json").stdout)
    assert said["valid"] is False and "is not a readable ONNX graph" in said["error"]


def test_a_folder_and_a_part_are_no_host(model: Path, wanted: list[Splice], tmp_path: Path) -> None:
    out = splice(model / "host.onnx", wanted, tmp_path / "out").path.parent
    with pytest.raises(ValueError, match=r"out is a folder; name the graph of a host, such as .*model\.onnx"):
        splice(out, wanted, tmp_path / "more")
    with pytest.raises(ValueError, match=r"features\.onnx is the part of a graph that gives features; name the whole"):
        splice(out / "features.onnx", wanted, tmp_path / "more")


def test_a_reconstruction_in_a_host_of_an_older_opset_is_not_blamed_on_the_converter(
    model: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    one = Splice(bundle=bundle_of("mutual"), hook="layer.0", replace=True, edit=False)
    made = splice(model / "host.onnx", [one], tmp_path / "out")
    assert "not compared with the original's, since a reconstruction takes an activation's place" in made.warnings[0]


def test_a_graph_of_its_own_is_not_replaced_by_a_part_and_rubbish_is(
    model: Path, wanted: list[Splice], tmp_path: Path
) -> None:
    out = splice(model / "host.onnx", wanted, tmp_path / "out").path.parent
    shutil.copy(model / "host.onnx", out / "features.onnx")
    with pytest.raises(
        FileExistsError, match=r"features\.onnx is a graph of its own, and the part that gives features"
    ):
        splice(model / "host.onnx", wanted, out, force=True)
    (out / "features.onnx").write_bytes(b"rubbish")
    edits = Splice(bundle=wanted[0].bundle, hook="layer.0", read=False)
    assert splice(model / "host.onnx", [edits], out, force=True).features is None
    splice(model / "host.onnx", wanted, out, force=True)
    assert read_layout(out).features == out / "features.onnx"
