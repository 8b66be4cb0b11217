import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_runtime import bundle, tuned
from sae_runtime.bundle import DERIVED, WEIGHTS
from sae_runtime.manifest import FileRecord, Manifest

BundleOf = Callable[..., Path]
EXACT, PLAIN = "encode_exact.onnx", "encode.onnx"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SAE_RUNTIME_TUNED", str(tmp_path / "cache" / "tuned.json"))
    return tmp_path / "cache" / "tuned.json"


@pytest.fixture
def manifest(bundle_of: BundleOf) -> Manifest:
    return bundle.read(bundle_of("mutual", 512, sampled=True)).manifest


def test_what_is_kept_is_found(manifest: Manifest) -> None:
    assert tuned.find(manifest, 2) is None
    tuned.keep(manifest, 2, EXACT, {"rows": (1, 16)})
    tuned.keep(manifest, 1, PLAIN, {})
    assert (tuned.find(manifest, 2), tuned.find(manifest, 1), tuned.find(manifest, 3)) == (EXACT, PLAIN, None)


def test_a_new_answer_replaces_the_old_one(manifest: Manifest, place: Path) -> None:
    for threads, graph in ((2, EXACT), (1, EXACT), (2, PLAIN)):
        tuned.keep(manifest, threads, graph, {"rows": (1, 16)})
    assert (tuned.find(manifest, 2), tuned.find(manifest, 1)) == (PLAIN, EXACT)
    entries = json.loads(place.read_text())
    assert [(entry["key"]["threads"], entry["rows"]) for entry in entries] == [(1, [1, 16]), (2, [1, 16])]
    assert [file.name for file in place.parent.iterdir()] == [place.name]


def _other(manifest: Manifest, name: str) -> Manifest:
    files = {**manifest.files, name: FileRecord(size=1, sha256="0" * 64)}
    return dataclasses.replace(manifest, files=files)


def test_what_the_timing_depends_on(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.keep(manifest, 2, EXACT, {})
    for name in (WEIGHTS, DERIVED):
        assert tuned.find(_other(manifest, name), 2) is None
    graphs = {**manifest.graphs, EXACT: dataclasses.replace(manifest.graphs[EXACT], sha256="0" * 64)}
    assert tuned.find(dataclasses.replace(manifest, graphs=graphs), 2) is None
    assert tuned.find(dataclasses.replace(manifest, hook="another"), 2) == EXACT
    for name, value in (("_cpu", "another processor"), ("_onnxruntime", "9.9"), ("_onnxruntime", None)):
        with monkeypatch.context() as patch:
            patch.setattr(tuned, name, lambda value=value: value)
            assert tuned.find(manifest, 2) is None
    assert tuned.find(manifest, 2) == EXACT


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"3", b"{}", b'[3, null, {"key": []}]', b"[" * 100_000, None]
)
def test_a_file_that_cannot_be_read_is_no_file(manifest: Manifest, place: Path, content: bytes | None) -> None:
    place.parent.mkdir()
    if content is None:
        place.mkdir()
    else:
        place.write_bytes(content)
    assert tuned.find(manifest, 2) is None
    if content is not None:
        tuned.keep(manifest, 2, EXACT, {})
        assert tuned.find(manifest, 2) == EXACT


@pytest.mark.parametrize("graph", ["missing.onnx", None, 3, [EXACT], {}])
def test_an_answer_that_is_no_graph_of_the_bundle(manifest: Manifest, place: Path, graph: Any) -> None:
    tuned.keep(manifest, 2, EXACT, {})
    (entry,) = json.loads(place.read_text())
    place.write_text(json.dumps([{**entry, "graph": graph}]))
    assert tuned.find(manifest, 2) is None


def test_a_place_that_cannot_be_written(manifest: Manifest, place: Path) -> None:
    place.parent.write_text("a file")
    assert tuned.find(manifest, 2) is None
    with pytest.raises(NotADirectoryError, match=f"{place.parent} is a file"):
        tuned.keep(manifest, 2, EXACT, {})


def test_place(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    assert tuned.place() == place
    monkeypatch.delenv("SAE_RUNTIME_TUNED")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert tuned.place() == Path("/caches/sae-runtime/tuned.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert tuned.place() == Path("/home/somebody/.cache/sae-runtime/tuned.json")


def test_the_processor_has_a_name() -> None:
    assert tuned._cpu() and tuned._cpu() == tuned._cpu().strip()
