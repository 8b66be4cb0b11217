"""What a splice leaves: names, equal files, a second splice, weights that are replaced, a graph for servers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused
from command_line import run as run_command
from conftest import D_IN, make_manifest, make_weights, make_x
from made_hosts import host
from tiny_host import open_plainly, run

from sae_runtime import Edit
from sae_runtime.bundle import folder
from sae_runtime.bundle.folder import MANIFEST, WEIGHTS, BundleError
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.splices import check_weights, read_splices
from sae_runtime.bundle.tensors import read_header
from sae_runtime.core.edits import as_inputs
from sae_runtime.exports.export import export
from sae_runtime.exports.splice.placement import Placement
from sae_runtime.exports.splice.splicing import Splice, SplicedGraph, splice

BundleOf = Callable[..., Path]
IDS = np.array([[1, 2, 3, 11], [4, 5, 0, 7], [9, 9, 1, 3]])
D_SAE = 150


@pytest.fixture
def model(bundle_of: BundleOf, tmp_path: Path) -> Path:
    """A folder with a host and its own copy of a bundle."""
    host(tmp_path / "model" / "host.onnx", external="host.data")
    shutil.copytree(bundle_of("mutual", D_SAE), tmp_path / "model" / "bundle")
    return tmp_path / "model"


def one(model: Path, **settings: Any) -> list[Splice]:
    return [Splice(bundle=model / "bundle", hook="layer.0", **settings)]


def weights_in(made: SplicedGraph) -> str:
    """The path of the SAE's weights from the graph: in a copy of the bundle, else a name that tells their content."""
    one = made.splices[0]
    return str(one.file) if one.reads_bundle else f"sae_weights.{one.weights[:16]}.safetensors"


def test_the_graph_is_named_after_the_host_beside_it_and_model_in_a_new_folder(model: Path) -> None:
    assert splice(model / "host.onnx", one(model)).path == model / "host_sae.onnx"
    assert splice(model / "host.onnx", one(model), model, force=True).path == model / "host_sae.onnx"
    assert splice(model / "host.onnx", one(model), model / "new").path == model / "new" / "model.onnx"
    assert splice(model / "host.onnx", one(model), model / "b.onnx").path == model / "b.onnx"
    with pytest.raises(FileExistsError, match=r"host_sae\.onnx already exists; pass --force"):
        splice(model / "host.onnx", one(model))


def test_beside_a_configuration_of_genai_a_new_folder_keeps_its_name(model: Path, tmp_path: Path) -> None:
    config = {"model": {"decoder": {"filename": "host.onnx"}}}
    (model / "genai_config.json").write_text(json.dumps(config))
    (model / "tokenizer.json").write_text("{}")
    made = splice(model / "host.onnx", one(model), tmp_path / "new")
    assert made.path == tmp_path / "new" / "host.onnx"
    assert {"host.data", weights_in(made)} == set(made.files)
    assert {name for name in made.beside if "/" not in name} == {"genai_config.json", "tokenizer.json", "README.md"}
    with pytest.raises(ValueError, match=r"names its graph host\.onnx; write the spliced one under that name"):
        splice(model / "host.onnx", one(model), tmp_path / "other" / "a.onnx")
    (model / "genai_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no graph"):
        splice(model / "host.onnx", one(model), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_second_splice_into_a_folder_uses_the_equal_files_there(
    model: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = splice(model / "host.onnx", one(model), out / "a.onnx")
    assert set(first.files.values()) == {"copied"}
    second = splice(model / "host.onnx", one(model, edit=False), out / "b.onnx")
    assert second.files == dict.fromkeys(first.files, "referred")
    other = splice(model / "host.onnx", [Splice(bundle=bundle_of("token", D_SAE), hook="layer.0")], out / "c.onnx")
    assert other.files == {"host.data": "referred", weights_in(other): "copied"}
    graphs = {f"{name}{end}.onnx" for name in "abc" for end in ("", "_features")}
    of_other = f"sae-{folder.record(bundle_of('token', D_SAE) / MANIFEST).sha256[:16]}"
    names = {*graphs, "host.data", "README.md", "sae", of_other}
    assert weights_in(first) == "sae/sae_weights.safetensors" and weights_in(other).startswith(f"{of_other}/")
    assert {path.name for path in out.iterdir()} == names
    assert [made.splices[0].bundle for made in (first, second, other)] == ["sae", "sae", of_other]
    for made in (first, second, other):
        check_weights(made.path, made.splices[0])
    (out / weights_in(first)).write_bytes(b"another")
    with pytest.raises(FileExistsError, match=r"sae/sae_weights\.safetensors already exists; pass --force"):
        splice(model / "host.onnx", one(model), out / "d.onnx")


def test_what_becomes_of_a_bundle_leaves_the_graphs_that_it_was_put_into(model: Path, tmp_path: Path) -> None:
    path, x = model / "sae", make_x(300, seed=8)
    folder.write(path, make_weights(512, "mutual"), make_manifest(512, "mutual"), sample=x)
    export(path, graphs=["exact"])
    assert "W_enc_rows" in read_header(path / folder.DERIVED), "an edit reads the derived weights too"
    for out in (model / "host_sae.onnx", tmp_path / "new"):
        made = splice(model / "host.onnx", [Splice(bundle=path, hook="layer.0")], out)
        edits = as_inputs([[Edit.add(3, 7.0), Edit.scale(4, 0.5)]], 512)
        feed = {"ids": IDS} | {f"sae_{name}": array for name, array in edits.items()}
        expected = run(made.path, feed, read=True)
        for change in (
            lambda: export(path, graphs=["gpu"], activations=make_x(200, seed=9)),
            lambda: export(path, graphs=[]),
            lambda: folder.write(path, make_weights(512, "mutual", 1), make_manifest(512, "mutual"), force=True),
            lambda: export(path),
            lambda: shutil.rmtree(path),
            lambda: folder.write(path, make_weights(512, "mutual"), make_manifest(512, "mutual"), sample=x),
            lambda: export(path, graphs=["exact"]),
        ):
            change()
            open_plainly.cache_clear()
            found = run(made.path, feed, read=True)
            assert all((found[name] == expected[name]).all() for name in expected)
            check_weights(made.path, made.splices[0])


def test_a_bundle_that_is_replaced_while_it_is_spliced_is_refused(
    model: Path, bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(placement: Placement, path: Path) -> dict[str, Path]:
        shutil.rmtree(model / "bundle")
        shutil.copytree(bundle_of("mutual", D_SAE, tied=True), model / "bundle")
        return copies(placement, path)

    copies = Placement.copies
    monkeypatch.setattr(Placement, "copies", replaced)
    before = set(model.iterdir())
    with pytest.raises(BundleError, match="bundle changed since it was loaded; load it again"):
        splice(model / "host.onnx", one(model))
    assert set(model.iterdir()) == before


def test_a_spliced_graph_takes_another_splice_and_moves_with_both(model: Path, tmp_path: Path) -> None:
    first = splice(model / "host.onnx", one(model))
    late = Splice(bundle=model / "bundle", hook="layer.1", name="late")
    with pytest.raises(ValueError, match="has a tensor sae/.* already; give this splice a name other than sae"):
        splice(first.path, [Splice(bundle=model / "bundle", hook="layer.1")], model / "two.onnx")
    for out in (model / "two.onnx", tmp_path / "moved"):
        made = splice(first.path, [late], out)
        assert [spliced.name for spliced in made.splices] == ["late"]
        said = read_splices(read_metadata(made.path))
        assert set(said) == {"sae", "late"}
        for spliced in said.values():
            check_weights(made.path, spliced)
        found = run(made.path, {"ids": IDS}, read=True)
        assert (found["sae_values"] > 0).any() and (found["late_values"] > 0).any()
    assert said["sae"].file == said["late"].file == "late/sae_weights.safetensors", "they share a file"
    shutil.rmtree(model)  # nothing outside the new folder is needed
    assert run(tmp_path / "moved" / "model.onnx", {"ids": IDS})["out"].shape == (3, 4, D_IN)


def test_weights_that_were_replaced_or_lost_are_noticed(model: Path, bundle_of: BundleOf) -> None:
    made = splice(model / "host.onnx", one(model))
    file = model / weights_in(made)
    assert made.splices[0].file == file.name
    check_weights(made.path, made.splices[0])
    said = run_command("inspect", made.path)
    assert said.exit_code == 0 and f"{file.name}  sha256 ok" in said.stdout
    checked = json.loads(run_command("doctor", made.path, "--json").stdout)
    assert checked["warnings"] == [] and checked["splices"]["sae"]["l0"] > 1 and checked["splices"]["sae"]["moved"]
    shutil.copyfile(bundle_of("mutual", D_SAE, tied=True) / WEIGHTS, file)  # as another fit in its place leaves it
    with pytest.raises(BundleError, match="is not the file that .*host_sae.onnx was spliced with as sae.*splice the"):
        check_weights(made.path, made.splices[0])
    said = run_command("inspect", made.path)
    assert said.exit_code == 1 and f"{file.name}  changed since the splice" in said.stdout
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 1
    assert "the SAE was fitted again or replaced" in refused("doctor", made.path)
    said = json.loads(run_command("inspect", made.path, "--json").stdout)
    assert said["valid"] is False and "fitted again" in said["error"]
    with pytest.raises(BundleError, match="the SAE was fitted again or replaced; splice the host again"):
        splice(made.path, [Splice(bundle=model / "bundle", hook="layer.1", name="late")], model / "two.onnx")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="is missing, which .* reads as sae; splice the host again"):
        check_weights(made.path, made.splices[0])
    assert f"{file.name}  missing" in run_command("inspect", made.path).stdout
    assert "is missing, which" in refused("doctor", made.path)


def test_inspect_and_doctor_take_a_graph_without_splices_and_refuse_other_files(model: Path) -> None:
    assert "splices    none" in run_command("inspect", model / "host.onnx").stdout
    assert json.loads(run_command("doctor", model / "host.onnx", "--json").stdout)["outputs"] == {"out": [2, 5, D_IN]}
    (model / "text.onnx").write_text("nothing")
    for command in ("inspect", "doctor"):
        assert "is not a readable ONNX graph" in refused(command, model / "text.onnx")
        assert "does not exist" in refused(command, model / "none.onnx")


def test_a_server_that_puts_requests_together_feeds_a_row_of_every_input(model: Path) -> None:
    """Triton joins equal shapes along the first dimension, and wants it free in every input."""
    path = splice(model / "host.onnx", one(model, required=True)).path
    session = open_plainly(path, False)
    assert {value.name for value in session.get_inputs()} == {
        *("ids", "sae_slots", "sae_features", "sae_scale", "sae_shift", "sae_low", "sae_high"),
        *("sae_gate", "sae_direction", "sae_when", "sae_above"),
    }
    assert not session.get_overridable_initializers()
    assert all(not isinstance(value.shape[0], int) for value in session.get_inputs())
    rng = np.random.default_rng(0)
    requests = []
    for row, edits in enumerate(([Edit.set(1, 5.0)], [Edit.add(2, 3.0)], [Edit.ablate(3)])):
        asked = {
            **as_inputs([edits], D_SAE),
            "gate": rng.uniform(0, 1, (1, 4, 1)).astype(np.float32),
            "direction": row * rng.standard_normal((1, 1, D_IN)).astype(np.float32),
            "when": np.array([[row]]),
            "above": np.full((1, 1), -1.0, np.float32),
            "slots": np.array([[4, 0, 16][row]]),
        }
        requests.append({"ids": IDS[[row]], **{f"sae_{name}": array for name, array in asked.items()}})
    together = run(path, {name: np.concatenate([request[name] for request in requests]) for name in requests[0]})
    assert together["sae_values"].shape == (3, 4, 16)
    for row, request in enumerate(requests):
        alone = run(path, request)
        np.testing.assert_allclose(together["out"][[row]], alone["out"], rtol=0, atol=1e-5)
        slots = int(request["sae_slots"][0])
        np.testing.assert_allclose(together["sae_values"][[row], :, :slots], alone["sae_values"], rtol=0, atol=1e-5)
