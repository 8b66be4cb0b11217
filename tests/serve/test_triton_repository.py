"""A repository of Triton: its configurations by Triton's own protobuf, the answers of its graphs, what is refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import D_IN, make_x
from word_model import deploy_words, some_words

from sae_runtime import Edit, load, load_model
from sae_runtime.bundle.folder import BundleError
from sae_runtime.cli import main
from sae_runtime.engine.sessions import open_session
from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.triton.backend import open_plane
from sae_runtime.serve.triton.config import from_text, to_text
from sae_runtime.serve.triton.repository import check_repository, foreign

BundleOf = Callable[..., Path]


def exported(*words: object) -> str:
    """What export-triton prints; it must succeed."""
    result = CliRunner().invoke(main, ["export-triton", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: object) -> str:
    """The line of an export-triton that fails."""
    result = CliRunner().invoke(main, ["export-triton", *map(str, words)])
    assert result.exit_code == 1, result.output
    assert result.output.startswith("error: ") and result.output.count("\n") == 1, result.output
    return result.output


@pytest.fixture
def moved(bundle_of: BundleOf, tmp_path: Path) -> Path:
    """A repository of a bundle, a threshold SAE, that was moved to another place."""
    bundle = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "sae"))
    exported(bundle, "-o", tmp_path / "made")
    shutil.rmtree(bundle)
    return (tmp_path / "made").rename(tmp_path / "moved")


def graph_of(repository: Path, model: str) -> Any:
    return open_session(repository / model / "1" / "model.onnx" / "model.onnx")


def test_configurations_are_what_tritons_own_reader_reads(moved: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    for model in sorted(moved.iterdir()):
        ours = from_text((model / "config.pbtxt").read_text())
        theirs = model_config_pb2.ModelConfig()
        text_format.Parse((model / "config.pbtxt").read_text(), theirs)
        assert (theirs.name, theirs.backend, theirs.max_batch_size) == (ours.name, ours.backend, ours.max_batch_size)
        assert ours.name == model.name
        kinds = model_config_pb2.DataType.Name
        for tensor, other in zip((*ours.inputs, *ours.outputs), (*theirs.input, *theirs.output), strict=True):
            assert (tensor.name, list(tensor.dims)) == (other.name, list(other.dims))
            assert kinds(other.data_type).removeprefix("TYPE_") == tensor.datatype.replace("BYTES", "STRING")
        assert [tensor.optional for tensor in ours.inputs] == [tensor.optional for tensor in theirs.input]
        delay = theirs.dynamic_batching.max_queue_delay_microseconds if theirs.HasField("dynamic_batching") else None
        assert ours.delay == delay
        assert {key: value.string_value for key, value in theirs.parameters.items()} == ours.parameters
        assert to_text(ours) == (model / "config.pbtxt").read_text()


def test_graphs_of_the_moved_repository_give_the_bundles_answers(moved: Path, bundle_of: BundleOf) -> None:
    sae, x = load(bundle_of("mutual")), make_x(40)
    indices, values = graph_of(moved, "sae.encode_onnx").run(None, {"x": x})
    expected = sae.encode_slots(x)
    width = expected[1].shape[1]
    np.testing.assert_array_equal(values[:, :width], expected[1])
    np.testing.assert_array_equal(
        np.where(values > 0, indices, 0)[:, :width], np.where(expected[1] > 0, expected[0], 0)
    )
    (decoded,) = graph_of(moved, "sae.decode_onnx").run(None, {"indices": indices, "values": values})
    np.testing.assert_allclose(decoded, sae.decode(sae.encode(x)), atol=1e-5)


def test_batched_steering_wants_all_inputs_and_gives_each_request_its_own_answer(
    moved: Path, bundle_of: BundleOf
) -> None:
    """Requests are put together along the first dimension, as Triton does it."""
    batched, sae = graph_of(moved, "sae.steer_batched_onnx"), load(bundle_of("mutual"))
    assert not batched.get_overridable_initializers()
    x = make_x(24).reshape(3, 8, D_IN)
    edits = [Edit.set(3, 4.0), Edit.scale(5, 0.5), Edit.ablate(7)]
    feed: dict[str, Any] = {
        "x": x,
        "features": np.array([[edit.feature] for edit in edits], np.int64),
        "scale": np.array([[edit.factor] for edit in edits], np.float32),
        "shift": np.array([[edit.shift] for edit in edits], np.float32),
        "low": np.array([[edit.low] for edit in edits], np.float32),
        "high": np.array([[edit.high] for edit in edits], np.float32),
        "gate": np.ones((3, 8, 1), np.float32),
    }
    (y,) = batched.run(None, feed)
    for row, edit in enumerate(edits):
        np.testing.assert_allclose(y[row], sae.steer(x[row], edit), atol=1e-5)
        (alone,) = batched.run(None, {name: array[row : row + 1] for name, array in feed.items()})
        np.testing.assert_array_equal(alone[0], y[row])
    (plain,) = graph_of(moved, "sae.steer_onnx").run(None, {"x": x})
    np.testing.assert_array_equal(plain, x)


@pytest.mark.parametrize("kind", ["token", "mutual", "feature"])
def test_every_allocation_is_exported_with_its_options(kind: str, bundle_of: BundleOf, tmp_path: Path) -> None:
    exported(f"m={bundle_of(kind)}", "-o", tmp_path / "r", "--max-batch", 0, "--device", "gpu", "--threads", 2)
    found = {config.name: config for config in check_repository(tmp_path / "r")}
    assert all(config.max_batch_size == 0 and config.delay is None for config in found.values())
    assert all(config.device == "GPU" for config in found.values())
    option = "k" if kind == "token" else "threshold"
    assert [tensor.name for tensor in found["m.encode"].inputs if tensor.optional] == [option]
    assert found["m.encode_onnx"].parameters == {"intra_op_thread_count": "2"}
    assert "m.steer_batched_onnx" not in found


def test_deployed_model_is_exported_with_what_it_reads_and_nothing_else(bundle_of: BundleOf, tmp_path: Path) -> None:
    model = deploy_words(tmp_path / "words", bundle_of("mutual"))
    (model / "other.bin").write_bytes(bytes(1000))
    exported(model, "--operation", "features", "-o", tmp_path / "r")
    assert [entry.name for entry in (tmp_path / "r").iterdir()] == ["words.features"]
    served = tmp_path / "r" / "words.features" / "1" / "served"
    assert not list(served.rglob("other.bin"))
    texts = some_words(5, 7)
    expected = load_model(model).features(texts)
    shutil.rmtree(model)
    config = from_text((tmp_path / "r" / "words.features" / "config.pbtxt").read_text())
    for one, other in zip(load_model(served.parent / config.parameters["path"]).features(texts), expected, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_array_equal(one.features.values, other.features.values)


def test_bounds_for_edits_go_with_the_models_that_take_edits(bundle_of: BundleOf, tmp_path: Path) -> None:
    paths = f"one={bundle_of('mutual')}", f"two={bundle_of('token')}"
    exported(*paths, "--allow-feature", "two:3", "--largest-factor", 2, "-o", tmp_path / "r")
    found = {config.name: config for config in check_repository(tmp_path / "r")}
    assert {name for name, config in found.items() if "policy" in config.parameters} == {"one.steer", "two.steer"}
    assert not [name for name in found if name.endswith(("steer_onnx", "steer_batched_onnx"))]
    for name, allowed in (("one", False), ("two", True)):  # the list holds nothing of one, so nothing of one is allowed
        version = tmp_path / "r" / f"{name}.steer" / "1"
        plane = open_plane(f"{name}.steer", version, found[f"{name}.steer"].parameters, merge=False)
        for feature, said in ((3, None if allowed else "may not be edited"), (4, "may not be edited")):
            asked = {"x": make_x(2), "edits": np.array([f'[{{"feature": {feature}, "scale": 2.0}}]'.encode()], object)}
            if said is None:
                plane.infer(f"{name}.steer", asked)
            else:
                with pytest.raises(Invalid, match=said):
                    plane.infer(f"{name}.steer", asked)
        plane.close()
    assert "list of features names 999" in refused(paths[0], "--allow-feature", "999", "-o", tmp_path / "s")
    line = refused(paths[0], "--no-edits", "--operation", "steer_onnx", "-o", tmp_path / "s")
    assert "steer_onnx is a graph, which has no bounds" in line
    config = tmp_path / "r" / "two.steer" / "config.pbtxt"
    config.write_text(config.read_text().replace("two:3", "two:999"))
    with pytest.raises(ValueError, match="list of features names 999"):
        check_repository(tmp_path / "r")


def test_versions_share_one_model(bundle_of: BundleOf, tmp_path: Path) -> None:
    one, other = bundle_of("mutual"), bundle_of("token")
    exported(f"m@2={one}", f"m@10={one}", "--operation", "encode", "-o", tmp_path / "r")
    assert {entry.name for entry in (tmp_path / "r" / "m.encode").iterdir()} == {"2", "10", "config.pbtxt"}
    line = refused(f"m@1={one}", f"m@2={other}", "--max-batch", 0, "-o", tmp_path / "other")
    assert "differ in inputs or outputs" in line
    assert not (tmp_path / "other").exists()


def test_repository_holds_no_links_even_of_a_hub_cache(bundle_of: BundleOf, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(bundle_of("mutual").iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    exported(f"m={snapshot}", "-o", tmp_path / "r")
    assert not [file for file in (tmp_path / "r").rglob("*") if file.is_symlink()]
    check_repository(tmp_path / "r")


def test_other_folders_are_not_replaced(bundle_of: BundleOf, tmp_path: Path) -> None:
    (tmp_path / "r" / "resnet").mkdir(parents=True)
    (tmp_path / "r" / "resnet" / "config.pbtxt").write_text('name: "resnet"')
    assert foreign(tmp_path / "r") == "resnet"
    assert "resnet, which would be lost" in refused(bundle_of("mutual"), "-o", tmp_path / "r", "--force")
    assert "--force" in refused(bundle_of("mutual"), "-o", tmp_path / "r")


@pytest.mark.parametrize(
    "words, said",
    [
        (["{bundle}", "--operation", "fly"], "there is no operation 'fly' here"),
        (["{words}", "--backend", "onnx"], "add --backend python"),
        (["{bundle}", "--instances", "0"], "--instances is a whole number"),
        (["{bundle}", "--max-batch", "-1"], "--max-batch is a whole number"),
        (["{bundle}", "--delay", "4g"], "--delay is a whole number"),
        (["{bundle}", "--threads", "0"], "threads must be 1 to"),
        (["{bundle}", "m={bundle}", "m={bundle}"], "are both m of version 1"),
        (["nothing"], "does not exist"),
    ],
)
def test_wrong_calls_are_one_sentence(words: list[str], said: str, bundle_of: BundleOf, tmp_path: Path) -> None:
    places = {"bundle": bundle_of("mutual"), "words": tmp_path / "words"}
    if "{words}" in words:
        deploy_words(places["words"], bundle_of("mutual"))
    assert said in refused(*(word.format(**places) for word in words), "-o", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def broken_link(model: Path) -> None:
    file = model / "1" / "model.py"
    file.rename(model / "elsewhere.py")
    file.symlink_to("../elsewhere.py")


def hard_link(model: Path) -> None:
    os.link(model / "1" / "model.py", model / "second.py")


def rename_version(model: Path) -> None:
    (model / "1").rename(model / "01")


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        text = (model / "config.pbtxt").read_text()
        assert old in text
        (model / "config.pbtxt").write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    "change, said",
    [
        (broken_link, "is a link"),
        (hard_link, "is a link"),
        (rename_version, "'01' is no version"),
        (lambda model: shutil.rmtree(model / "1"), "no folder of a version"),
        (lambda model: (model / "1" / "model.py").unlink(), "has no model.py"),
        (lambda model: (model / "config.pbtxt").unlink(), "No such file"),
        (lambda model: (model / "1" / "served" / "sae_weights.safetensors").write_bytes(b""), "has 0 bytes"),
        (edit('name: "sae.encode"', 'name: "other"'), "names 'other'"),
        (edit('"python"', '"tensorrt"'), "the backend is 'tensorrt'"),
        (edit("max_batch_size: 4096", "max_batch_size: 0"), "nothing to merge"),
        (edit("max_batch_size: 4096", "max_batch_size: x"), "whole number is expected"),
        (edit('string_value: "encode"', 'string_value: "encode_batch"'), "never merged"),
        (edit('string_value: "encode"', 'string_value: "fly"'), "fly"),
        (edit('name: "x"', 'name: "y"'), "has no y"),
        (edit("KIND_CPU", "KIND_MODEL"), "KIND_CPU or KIND_GPU"),
        (edit("version_policy {", "version_policy"), "has no value"),
    ],
)
def test_changed_repository_is_refused_by_the_model(
    change: Callable[[Path], None], said: str, bundle_of: BundleOf, tmp_path: Path
) -> None:
    exported(f"sae={bundle_of('mutual')}", "--operation", "encode", "-o", tmp_path / "r")
    change(tmp_path / "r" / "sae.encode")
    with pytest.raises((ValueError, BundleError), match="sae.encode") as caught:
        check_repository(tmp_path / "r")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
