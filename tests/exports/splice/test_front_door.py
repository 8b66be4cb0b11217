"""The second argument of `sae_runtime.exports.splice`: a reference, a `Splice`, or a list of these."""

import dataclasses
import importlib
import shutil
from pathlib import Path

import pytest
from conftest import make_manifest, make_weights
from made_hosts import host

from sae_runtime import exports
from sae_runtime.bundle import folder, ready
from sae_runtime.exports import Splice, splice


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One that knows its hook."""
    manifest = dataclasses.replace(make_manifest(150, "mutual"), hook="layer.0")
    folder.write(tmp_path / "bundle", make_weights(150, "mutual"), manifest)
    return tmp_path / "bundle"


def test_a_reference_a_splice_and_lists_of_them_are_the_same(tmp_path: Path, bundle: Path) -> None:
    host(tmp_path / "host.onnx")
    one = Splice(bundle=bundle)
    forms: list[str | Path | Splice | list[Path] | list[Splice]] = [str(bundle), bundle, one, [bundle], [one]]
    written = []
    for number, saes in enumerate(forms):
        made = splice(tmp_path / "host.onnx", saes, tmp_path / f"out{number}")
        written.append({path.name: path.read_bytes() for path in (tmp_path / f"out{number}").rglob("*.*")})
        assert [one.hook for one in made.splices] == ["layer.0"]
    assert all(each == written[0] for each in written)


def test_a_ready_sae_is_spliced_by_its_name_and_copied_out_of_the_package(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "installed"
    shutil.copytree(bundle, installed / "host/layer.0")
    monkeypatch.setattr(ready, "FOLDER", installed)
    host(tmp_path / "host.onnx")
    before = {path: path.read_bytes() for path in installed.rglob("*.*") if path.is_file()}
    made = splice(tmp_path / "host.onnx", "host/layer.0", tmp_path / "model")
    assert (tmp_path / "model" / str(made.splices[0].bundle) / folder.MANIFEST).is_file()
    assert {path: path.read_bytes() for path in installed.rglob("*.*") if path.is_file()} == before
    beside = splice(tmp_path / "host.onnx", "host/layer.0", tmp_path / "spliced.onnx")  # the package lies below it
    assert beside.splices[0].bundle == "sae" and (tmp_path / "sae" / folder.MANIFEST).is_file()
    with pytest.raises(FileNotFoundError, match="or a ready SAE: host/layer.0$"):
        splice(tmp_path / "host.onnx", "host/layer.1", tmp_path / "other")


def test_the_function_and_its_room_share_a_name() -> None:
    splicing = importlib.import_module("sae_runtime.exports.splice.splicing")
    assert exports.splice is splicing.splice and exports.Splice is splicing.Splice
