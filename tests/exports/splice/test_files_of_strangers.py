"""A stranger's host graph names files of this machine: nothing of them may come out, and nothing hangs or is lost."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import refused
from command_line import run as run_command
from made_hosts import host
from tiny_host import run

from sae_runtime.bundle import replacing
from sae_runtime.bundle.graph_reader import read_metadata
from sae_runtime.bundle.splices import KEY, read_splices
from sae_runtime.exports.splice.splicing import Splice, splice

BundleOf = Callable[..., Path]
IDS = np.array([[1, 2, 3, 11], [4, 5, 0, 7], [9, 9, 1, 3]])
D_SAE = 150
SECRET = b"the secret of the user " * 4096


@pytest.fixture
def bundle(bundle_of: BundleOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_of("mutual", D_SAE), tmp_path / "saes" / "bundle"))


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """A stranger's folder, with a secret of the user outside of it; the test fails if the secret comes out."""
    host(tmp_path / "model" / "host.onnx", external="host.data")
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "model" / "inner").mkdir()
    yield tmp_path / "model"
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or SECRET[:200] not in path.read_bytes(), path


def renamed(model: Path, **entries: str | None) -> None:
    """Let the first tensor of the host name its numbers so; None takes an entry away."""
    graph = onnx.load(model / "host.onnx", load_external_data=False)
    first = next(tensor for tensor in graph.graph.initializer if tensor.external_data)
    kept = {entry.key: entry.value for entry in first.external_data} | entries
    del first.external_data[:]
    for key, value in kept.items():
        if value is not None:
            first.external_data.add(key=key, value=value)
    (model / "host.onnx").write_bytes(graph.SerializeToString())


def refuses(model: Path, bundle: Path, message: str, *, kind: type[Exception] = ValueError) -> None:
    """Neither a splice nor doctor opens the host, and the splice writes nothing."""
    out = model.parent / "out"
    with pytest.raises(kind, match=message):
        splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], out)
    assert not out.exists()
    said = refused("doctor", model / "host.onnx")
    assert said.startswith("error: ") and len(said) < 600


@pytest.mark.parametrize(
    "location",
    ["{home}/secret", "../secret", "inner/../../secret", "link", "linked/secret", "deep", "file://{home}/secret", ""]
    + ["..\\secret", "host.data\0", "./.././secret", "*/_ORT_MEM_ADDR_/*", "x" * 5000],
)
def test_a_location_outside_of_the_folder_is_refused(model: Path, bundle: Path, location: str) -> None:
    (model / "link").symlink_to("../secret")
    (model / "linked").symlink_to("..")
    (model / "deep").symlink_to("linked/secret")
    (model / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (model / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(SECRET)
    renamed(model, location=location.format(home=model.parent), offset="0")
    refuses(model, bundle, "which is not in its folder; put the file there and export it again")


@pytest.mark.parametrize("location", [".", "inner", "pipe", "null"])
def test_what_is_no_file_is_refused_and_does_not_hang(model: Path, bundle: Path, location: str) -> None:
    os.mkfifo(model / "pipe")
    (model / "null").symlink_to("/dev/null")
    renamed(model, location=location)
    refuses(model, bundle, "which is not a file; copy the model again|which is not in its folder")


def test_links_in_a_circle_and_what_is_missing_are_refused(model: Path, bundle: Path) -> None:
    (model / "a").symlink_to("b")
    (model / "b").symlink_to("a")
    renamed(model, location="a")
    refuses(model, bundle, "reads 'a': Too many levels of symbolic links; copy the model again")
    renamed(model, location="none.data")
    refuses(model, bundle, "none.data is missing, which holds weights", kind=FileNotFoundError)
    renamed(model, location="x" * 300)
    refuses(model, bundle, "File name too long; copy the model again")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": "99999999"}, r"from bytes 0 to 99,999,999 of 'host.data', which has"),
        ({"offset": "99999999"}, r"of 'host.data', which has"),
        ({"offset": "99999999", "length": None}, r"of 'host.data', which has"),
        ({"offset": "-4"}, "the offset of .* is '-4'; export it again"),
        ({"length": "-4"}, "the length of .* is '-4'"),
        ({"length": "0x10"}, "the length of .* is '0x10'"),
        ({"offset": "\u0664"}, "the offset of"),
        ({"offset": "9" * 400}, "the offset of"),
        ({"location": None}, "does not say once where its tensor .* is"),
    ],
)
def test_a_place_that_is_not_in_the_file_is_refused(
    model: Path, bundle: Path, entries: dict[str, str | None], message: str
) -> None:
    renamed(model, **entries)
    refuses(model, bundle, message)


def test_two_tensors_may_share_their_numbers(model: Path, bundle: Path) -> None:
    graph = onnx.load(model / "host.onnx", load_external_data=False)
    tensors = [tensor for tensor in graph.graph.initializer if tensor.external_data]
    groups: dict[tuple[int, ...], list[Any]] = {}
    for tensor in tensors:
        groups.setdefault(tuple(tensor.dims), []).append(tensor)
    one, other, *_ = next(group for group in groups.values() if len(group) > 1)
    del other.external_data[:]
    other.external_data.extend(one.external_data)
    (model / "host.onnx").write_bytes(graph.SerializeToString())
    made = splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], model.parent / "out")
    np.testing.assert_array_equal(run(made.path, {"ids": IDS})["out"], run(model / "host.onnx", {"ids": IDS})["out"])


def test_companions_that_leave_the_folder_are_refused(model: Path, bundle: Path) -> None:
    (model / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "host.onnx"}}}))
    (model / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(
        ValueError, match="tokenizer.json is a link out of its folder, to .*; put the file itself there"
    ):
        splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], model.parent / "out")
    (model / "tokenizer.json").unlink()
    os.mkfifo(model / "tokenizer.json")
    made = splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], model.parent / "out")
    assert "tokenizer.json" not in made.beside and "genai_config.json" in made.beside


@pytest.mark.parametrize(
    "name", ["../stolen.onnx", "/tmp/stolen.onnx", "a/b.onnx", "host.txt", "", 3, None, "a\\b.onnx"]
)
def test_a_configuration_does_not_choose_another_folder(model: Path, bundle: Path, name: object) -> None:
    (model / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": name}}}))
    with pytest.raises(ValueError, match="names no graph"):
        splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], model.parent / "out")
    assert not (model.parent / "stolen.onnx").exists() and not (model.parent / "out").exists()


def test_configurations_that_are_pipes_do_not_hang(model: Path, bundle: Path) -> None:
    for name in ("config.json", "genai_config.json"):
        os.mkfifo(model / name)
    splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], model.parent / "out")


def test_a_host_and_a_bundle_of_a_hub_cache_keep_their_names(model: Path, bundle: Path, tmp_path: Path) -> None:
    (model / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "host.onnx"}}}))
    for name in ("vocab.json", "added_tokens.json"):
        (model / name).write_text("{}")
    cached = {}
    for name, source in (("host", model), ("sae", bundle)):
        home = tmp_path / "hub" / f"models--o--{name}"
        cached[name] = home / "snapshots" / "0123" / "inner"
        cached[name].mkdir(parents=True)
        (home / "blobs").mkdir()
        for number, file in enumerate(path for path in sorted(source.iterdir()) if path.is_file()):
            shutil.copyfile(file, home / "blobs" / f"{number:040x}")
            (cached[name] / file.name).symlink_to(f"../../../blobs/{number:040x}")
    (cached["host"] / "added_tokens.json").unlink()
    (cached["host"] / "added_tokens.json").symlink_to(
        (cached["host"] / "vocab.json").readlink()
    )  # equal files share a blob
    made = splice(cached["host"] / "host.onnx", [Splice(bundle=cached["sae"], hook="layer.0")], tmp_path / "out")
    assert made.files == {"host.data": "copied", "sae/sae_weights.safetensors": "copied"}
    assert {name for name in made.beside if "/" not in name} == {
        *("genai_config.json", "vocab.json", "added_tokens.json", "README.md"),
    }
    assert {path.relative_to(tmp_path / "out").as_posix() for path in made.path.parent.rglob("*.*")} == {
        *("host.onnx", "host_features.onnx", *made.files, *made.beside),
    }
    assert not any(path.is_symlink() for path in made.path.parent.rglob("*"))
    shutil.rmtree(tmp_path / "hub")
    assert np.isfinite(run(made.path, {"ids": IDS})["out"]).all()
    assert run_command("doctor", made.path).exit_code == 0


def test_weights_of_a_splice_in_another_folder_are_refused(model: Path, bundle: Path) -> None:
    made = splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], model.parent / "out")
    graph = onnx.load(made.path, load_external_data=False)
    for entry in graph.metadata_props:
        if entry.key.startswith(KEY):
            entry.value = json.dumps({**json.loads(entry.value), "file": "../secret"})
    made.path.write_bytes(graph.SerializeToString())
    for command in ("inspect", "doctor"):
        said = run_command(command, made.path)
        assert said.exit_code == 1 and "reads '../secret', which is not in its folder" in said.stderr


@pytest.mark.parametrize("step", ["sync", "_put"])
def test_a_splice_that_fails_at_its_last_step_leaves_what_was_there(
    model: Path, bundle: Path, bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    out = model.parent / "out"
    real = replacing._put

    def fails(*arguments: Any, **settings: Any) -> Any:
        if step == "_put" and arguments[1].name not in ("out", "model.onnx"):
            return real(*arguments, **settings)
        raise OSError(errno.ENOSPC, "No space left on device")

    def again(sae: Path) -> None:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(replacing, step, fails)
            splice(model / "host.onnx", [Splice(bundle=sae, hook="layer.0")], out, force=True)

    again(bundle)
    assert not out.exists()
    splice(model / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    again(bundle_of("token", D_SAE))
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    splice(model / "host.onnx", [Splice(bundle=bundle_of("token", D_SAE), hook="layer.0")], out, force=True)
    # The earlier bundle stays, since another graph may read it.
    assert set(before) < set(out.rglob("*.*"))
    assert read_splices(read_metadata(out / "model.onnx"))["sae"].slots == 6
    assert run_command("doctor", out / "model.onnx").exit_code == 0
