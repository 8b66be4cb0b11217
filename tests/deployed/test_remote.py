"""A deployed model of the Hub: which files are fetched. A folder stands for the repository, and nothing is asked."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from command_line import run
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # not in its __all__
from made_hosts import host

from sae_runtime.bundle import hub
from sae_runtime.deployed.host_sessions import HostSessions
from sae_runtime.deployed.layout import read_layout
from sae_runtime.engine.sessions import CPU
from sae_runtime.exports.splice.splicing import Splice, splice

BundleOf = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHERS = """modeling.py pytorch_model.bin model.safetensors optimizer.pkl training_args.bin notes.ipynb sae/evil.py
    1_Pooling/evil.py onnx/other.onnx onnx/other.onnx_data other/model.onnx other/tokenizer.json""".split()


@pytest.fixture
def repository(bundle_of: BundleOf, tmp_path: Path) -> Path:
    """A deployed model with files that it does not need."""
    home = tmp_path / "source"
    host(home / "host.onnx", external="host.data")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "README.md"):
        (home / name).write_text("{}")
    bundle = Path(shutil.copytree(bundle_of("mutual"), tmp_path / "bundle"))
    (bundle / "labels.jsonl").write_text('{"feature": 3, "label": "three"}\n')
    made = splice(home / "host.onnx", [Splice(bundle=bundle, hook="layer.0")], tmp_path / "repository")
    for name in OTHERS:
        (made.path.parent / name).parent.mkdir(exist_ok=True)
        (made.path.parent / name).write_text("no part of it")
    return made.path.parent


@pytest.fixture
def snapshot(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files of the repository go when they are asked for, in a cache like huggingface_hub's."""
    home = tmp_path / "hub" / "models--me--model" / "snapshots" / COMMIT

    def download(name: str, *, revision: str | None, **patterns: Any) -> str:
        assert (name, revision in (None, "v2", COMMIT)) == ("me/model", True)
        home.mkdir(parents=True, exist_ok=True)
        every = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
        for file in filter_repo_objects(every, **patterns):
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / file, home / file)
        return str(home)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return home


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("reference", ["hf://me/model", "hf://me/model@v2", "hf://me/model/model.onnx"])
def test_a_deployed_model_comes_back_from_the_hub_without_other_files(
    repository: Path, snapshot: Path, reference: str
) -> None:
    layout = read_layout(reference)
    assert (layout.graph, layout.features) == (snapshot / "model.onnx", snapshot / "features.onnx")
    assert layout.bundles == {"sae": snapshot / "sae"} and layout.home == snapshot and layout.notes == ()
    card = "README-sae.md"  # `push` sends it as README.md
    assert files_in(snapshot) == files_in(repository) - {*OTHERS, card}
    assert "labels of 1 features" in run("inspect", reference).stdout


def test_a_model_in_a_folder_of_the_repository_with_its_graph_below(
    repository: Path, snapshot: Path, tmp_path: Path
) -> None:
    """As optimum and sentence-transformers lay it out."""
    inner = repository / "small"
    (inner / "onnx").mkdir(parents=True)
    for name in ("model.onnx", "features.onnx", "host.data"):
        (repository / name).rename(inner / "onnx" / name)
    shutil.copytree(repository / "sae", inner / "onnx" / "sae")
    for name in ("tokenizer.json", "config.json"):
        (repository / name).rename(inner / name)
    (inner / "onnx" / "model_fp16.onnx").write_text("a variant")
    for reference in ("hf://me/model/small", "hf://me/model/small/onnx/model.onnx"):
        layout = read_layout(reference)
        assert layout.graph == snapshot / "small" / "onnx" / "model.onnx" and layout.home == snapshot / "small"
        assert layout.features is not None and set(layout.bundles) == {"sae"}
        found = files_in(snapshot)
        assert "small/onnx/host.data" in found and "small/onnx/model_fp16.onnx" not in found
        assert not any(name.endswith((".py", ".bin", ".pkl")) for name in found)
        shutil.rmtree(snapshot)


def test_a_repository_without_a_graph_and_a_graph_that_reads_elsewhere_are_refused(
    repository: Path, snapshot: Path
) -> None:
    graph = (repository / "model.onnx").read_bytes()
    (repository / "model.onnx").write_bytes(graph.replace(b"host.data", b"../t.data"))
    with pytest.raises(ValueError, match=r"the model names '\.\./t\.data', which is not in its folder"):
        read_layout("hf://me/model")
    for path in repository.rglob("*.onnx"):
        path.unlink()
    shutil.rmtree(snapshot)
    with pytest.raises(FileNotFoundError, match=r"holds no graph, \.onnx"):
        read_layout("hf://me/model")


def test_inspect_knows_a_model_of_the_hub_by_its_tokenizer_and_a_graph_of_a_revision(
    repository: Path, snapshot: Path
) -> None:
    (repository / "tokenizer_config.json").unlink()
    for reference in ("hf://me/model", "hf://me/model/model.onnx@v2"):
        assert "150 features of layer.0" in run("inspect", reference).stdout


def test_labels_of_a_bundle_are_fetched(repository: Path, snapshot: Path) -> None:
    assert (hub.local("hf://me/model/sae") / "labels.jsonl").is_file()
    assert not (snapshot / "sae" / "evil.py").exists()


def test_a_model_in_a_cache_of_links_runs(repository: Path, tmp_path: Path) -> None:
    """huggingface_hub keeps the bytes in blobs; onnxruntime follows links to them from a graph that it opens itself."""
    home = tmp_path / "hub" / "models--me--model"
    (home / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(repository.rglob("*")) if path.is_file()):
        link = home / "snapshots" / COMMIT / path.relative_to(repository)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, home / "blobs" / f"{number:040x}")
        link.symlink_to(os.path.relpath(home / "blobs" / f"{number:040x}", link.parent))
    layout = read_layout(home / "snapshots" / COMMIT)
    assert layout.features is not None and set(layout.bundles) == {"sae"}
    sessions = HostSessions(layout, CPU, 1)
    sessions.check()
    for cut in (False, True):
        assert sessions.open(cut=cut).inputs.ids.name == "ids"
