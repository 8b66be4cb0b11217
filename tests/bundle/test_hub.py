"""The Hub through a cache in a temporary folder, without the network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from command_line import refused, run
from conftest import make_x
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # not in its __all__

from sae_runtime import load
from sae_runtime.bundle import extras, hub
from sae_runtime.bundle import folder as bundle
from sae_runtime.bundle.sae_lens_cfg import CFG
from sae_runtime.checkpoints.convert import convert

BundleOf = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in offline mode."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def keep(cache: Path, repository: str, source: Path, *, inside: str = "", revision: str = "main") -> Path:
    """Put a folder into the cache as huggingface_hub does: bytes in blobs, and links to them in a snapshot."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT / inside
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / revision).write_text(COMMIT)
    for file in source.iterdir():
        blob = home / "blobs" / bundle.record(file).sha256
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_a_bundle_of_the_cache_is_loaded(bundle_of: BundleOf, cache: Path, revision: str) -> None:
    keep(cache, "me/my-sae.x_1", bundle_of("mutual"), revision=revision)
    x = make_x(7)
    expected = load(bundle_of("mutual")).encode(x).to_dense()
    at = "" if revision == "main" else f"@{revision}"
    np.testing.assert_array_equal(load(f"hf://me/my-sae.x_1{at}").encode(x).to_dense(), expected)
    np.testing.assert_array_equal(load(f"hf://me/my-sae.x_1@{COMMIT}").encode(x).to_dense(), expected)


def test_a_bundle_in_a_folder_of_the_repository_is_loaded(bundle_of: BundleOf, cache: Path) -> None:
    snapshot = keep(cache, "me/saes", bundle_of("feature"), inside="layer.1/wide")
    assert hub.fetch("hf://me/saes/layer.1/wide/") == snapshot
    x = make_x(7)
    expected = load(bundle_of("feature")).encode(x).to_dense()
    np.testing.assert_array_equal(load("hf://me/saes/layer.1/wide").encode(x).to_dense(), expected)


def test_a_checkpoint_of_another_library_is_converted(bundle_of: BundleOf, cache: Path, tmp_path: Path) -> None:
    source = bundle.read(bundle_of("mutual"))
    (tmp_path / "layer").mkdir()
    for name in (CFG, bundle.WEIGHTS):  # without the manifest, the folder is one of SAELens
        shutil.copy(source.path / name, tmp_path / "layer")
    keep(cache, "me/saes", tmp_path / "layer", inside="layer")
    convert("hf://me/saes/layer", tmp_path / "out")
    made = bundle.read(tmp_path / "out")
    assert made.manifest.architecture == source.manifest.architecture
    assert (made.tensor("W_enc") == source.tensor("W_enc")).all()
    with pytest.raises(OSError, match="^hf://me/none cannot be fetched: HF_HUB_OFFLINE is set"):
        convert("hf://me/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.fixture
def unasked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the test fails if the code asks the Hub."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    return tmp_path / "work"


READERS: list[Callable[[str, Path], object]] = [
    lambda path, out: load(path),
    lambda path, out: convert(path, out),
    lambda path, out: hub.local(Path(path)),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("path", ["sae", "me/other", "./me/other", "/me/other", "a/b/c", "../other", "me/.hidden"])
def test_a_path_that_does_not_exist_is_refused_without_the_network(
    unasked: Path, path: str, read: Callable[[str, Path], object]
) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; name a path on this machine, or hf://"):
        read(path, unasked / "out")


def test_inspect_accepts_the_references_that_load_accepts(bundle_of: BundleOf, unasked: Path) -> None:
    shutil.copytree(bundle_of("token"), unasked / "me" / "my-sae")
    assert load("me/my-sae").manifest.architecture.selection == "topk"
    assert run("inspect", "me/my-sae").exit_code == 0
    assert refused("inspect", "me/other") == (
        "error: me/other does not exist; name a path on this machine, or hf://me/other to fetch it, or a ready SAE: "
        "all-MiniLM-L6-v2/encoder.layer.3"
    )


def test_inspect_reads_a_bundle_of_the_cache(bundle_of: BundleOf, cache: Path) -> None:
    keep(cache, "me/my-sae", bundle_of("mutual"))
    assert run("inspect", "hf://me/my-sae").exit_code == 0


@pytest.mark.parametrize("reference", ["file:///tmp/sae", "http://me/sae"])
def test_a_url_of_another_kind_is_refused(unasked: Path, reference: str) -> None:
    with pytest.raises(ValueError, match=f"^{reference} is a URL that sae-runtime cannot read; name a path on"):
        hub.local(reference)


def test_a_reference_that_the_cache_lacks_is_refused_while_offline(cache: Path, bundle_of: BundleOf) -> None:
    message = r"^hf://me/none cannot be fetched: HF_HUB_OFFLINE is set and it is not in the cache; check"
    with pytest.raises(OSError, match=message):
        hub.local("hf://me/none")
    keep(cache, "me/saes", bundle_of("mutual"), inside="one")
    with pytest.raises(FileNotFoundError, match=r"^hf://me/saes/two is not in that repository, or not in the cache"):
        hub.fetch("hf://me/saes/two")
    with pytest.raises(OSError, match=r"^hf://me/saes@v9 cannot be fetched: HF_HUB_OFFLINE is set"):
        hub.fetch("hf://me/saes@v9")


def test_hf_hub_offline_of_the_environment_is_obeyed(tmp_path: Path) -> None:
    code = "import sae_runtime\nsae_runtime.load('hf://me/none')"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("OSError: hf://me/none cannot be fetched: HF_HUB_OFF")


def test_fetch_reports_a_failure_of_the_network_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class ConnectError(Exception):
        """Like the errors of httpx, this is not an OSError."""

    def fails(*_: object, **__: object) -> None:
        raise ConnectError("no route\nto host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(OSError, match=r"^hf://me/none cannot be fetched: no route; check its name, or "):
        hub.fetch("hf://me/none")


REPOSITORY = """
    README.md .gitattributes config.json cfg.json sae_weights.safetensors ae.pt pytorch_model.bin optimizer.pkl
    params.npz one/params.npz one/ae.pt one/cfg.json one/deep/config.json one/x.py two/hyperparams.json
    two/checkpoints/final.safetensors two/checkpoints/old/final.safetensors two/checkpoints/final.pt
    two/other/x.safetensors sae/sae_runtime.json sae/encode.onnx sae/sae_weights.safetensors
    sae/deep/decode.onnx onnx/model.onnx
""".split()


@pytest.mark.parametrize(
    ("reference", "fetched"),
    [
        ("hf://me/saes", "config.json cfg.json sae_weights.safetensors params.npz"),
        ("hf://me/saes/one", "one/params.npz one/cfg.json"),
        ("hf://me/saes/one/ae.pt", "one/ae.pt one/cfg.json"),
        ("hf://me/saes/ae.pt", "ae.pt config.json cfg.json"),
        ("hf://me/saes/one/params.npz@v2", "one/params.npz one/cfg.json"),
        ("hf://me/saes/two", "two/hyperparams.json two/checkpoints/final.safetensors"),
        ("hf://me/saes/sae", "sae/sae_runtime.json sae/encode.onnx sae/sae_weights.safetensors"),
    ],
)
def test_fetch_downloads_no_file_that_can_run_code_unless_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, reference: str, fetched: str
) -> None:
    """The Hub is a list of names. huggingface_hub's filter applies our patterns to it."""
    snapshot = cache / "snapshots" / COMMIT

    def download(repository: str, *, revision: str | None, **patterns: Any) -> str:
        assert repository == "me/saes"
        assert revision in ("v2" if "@" in reference else None, COMMIT)
        for name in filter_repo_objects(REPOSITORY, **patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).touch()
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    path = hub.fetch(reference)
    assert path == snapshot.joinpath(*reference.partition("@")[0].split("/")[4:])
    found = {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}
    assert found == set(fetched.split())


def test_a_folder_of_the_hub_without_data_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text("")
    keep(cache, "me/saes", tmp_path / "source")
    with pytest.raises(
        FileNotFoundError, match=r"^hf://me/saes has no \.json, \.safetensors, \.npz there; name the fold"
    ):
        hub.fetch("hf://me/saes")


@pytest.mark.parametrize(
    "reference",
    ["hf://", "hf://me", "hf://me/", "hf://me/x/../y", "hf://me/x//y", "hf://me/x@", "hf://me/x@../..", "hf://../x"]
    + ["hf://me/x/*", "hf://me/[x]", "hf:///me/x", "http://me/x", "hf://me/x/a\\b", "hf://me/x y"],
)
def test_a_reference_of_another_form_is_refused(reference: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not a reference to the Hub; write hf://owner/name\[/folder\]\[@revision\]"
    ):
        hub.fetch(reference)


def test_a_reference_without_huggingface_hub_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing", lambda extra: ["huggingface_hub"] if extra == "hub" else [])
    message = r"^hf://me/none cannot be fetched: huggingface_hub not installed; run: pip install 'sae-runt"
    with pytest.raises(ImportError, match=message):
        hub.local("hf://me/none")
