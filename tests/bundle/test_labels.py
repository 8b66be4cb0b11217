import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_x
from documents import blocks

from sae_runtime import SAE, Edit, load, open_activations
from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.folder import put_stats
from sae_runtime.bundle.labels import read_labels, write_labels
from sae_runtime.bundle.stats import counted
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
from sae_runtime.exports.export import export

BundleOf = Callable[..., Path]
LINE = '{"feature": 12, "label": "include"}'


@pytest.fixture
def path(copy_of: BundleOf) -> Path:
    return copy_of("mutual")


@pytest.fixture(scope="module")
def served(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> SAE:
    """An SAE whose bundle the tests may give any labels."""
    return load(shutil.copytree(bundle_of("mutual"), tmp_path_factory.mktemp("served") / "sae"))


def put(path: Path, content: str | bytes) -> Path:
    (path / "labels.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        LINE,
        LINE + "\n",
        f"\n{LINE}\n\n",
        f"  {LINE}  \r\n\r\n",
        b"\xef\xbb\xbf" + LINE.encode(),
        '{"label": " include ", "feature": 12}',
        '{"feature": 12, "label": "include", "source": "np", "author": {"name": "A"}, "score": NaN, "note": null}',
        '{"feature": 12, "label": "\\u0069nclude"}',
    ],
)
def test_files_as_people_write_them(served: SAE, content: str | bytes) -> None:
    path = served._bundle.path
    assert dict(read_labels(put(path, content))) == {12: "include"}
    assert read_labels(path).feature("include") == 12


@pytest.mark.parametrize("content", ["", "\n", "\ufeff", "\r\n \n"])
def test_a_file_without_lines_has_no_labels(served: SAE, content: str) -> None:
    assert dict(read_labels(put(served._bundle.path, content))) == {}


def test_labels_of_odd_text(path: Path) -> None:
    texts = ["caf\u00e9", "open file", "a=b", "12", 'it\'s "x"', "日本語", "🙂", "שלום", "\u202eevil", "loop"]
    put(path, "".join(json.dumps({"feature": i, "label": text}) + "\n" for i, text in enumerate(texts)))
    labels = read_labels(path)
    assert dict(labels) == dict(enumerate(texts))
    assert all(labels.feature(text) == i for i, text in enumerate(texts))
    assert Edit.ablate("12").feature == 12  # and not 3, whose label it is


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("include", 1, "is not readable JSON (Expecting value"),
        (f"{LINE} {LINE}", 1, "is not readable JSON (Extra data"),
        (f"{LINE}\r{LINE}", 1, "is not readable JSON (Extra data"),
        (f"{LINE}\n[1]", 2, "must be an object, got [1]"),
        (f"{LINE}\n\n{LINE}", 3, "feature 12 has a label in an earlier line; give it one"),
        ('{"label": "a"}', 1, "feature must be int, got None"),
        ('{"feature": "12", "label": "a"}', 1, "feature must be int, got '12'"),
        ('{"feature": 12.0, "label": "a"}', 1, "feature must be int, got 12.0"),
        ('{"feature": true, "label": "a"}', 1, "feature must be int, got True"),
        ('{"feature": 150, "label": "a"}', 1, "feature 150 does not exist, expected 0 to 149"),
        ('{"feature": -1, "label": "a"}', 1, "feature -1 does not exist, expected 0 to 149"),
        ('{"feature": ' + "9" * 5000 + ', "label": "a"}', 1, "feature must be int, got inf"),
        ('{"feature": 1}', 1, "a label is a text that is not empty, got None"),
        ('{"feature": 1, "label": ""}', 1, "a label is a text that is not empty, got ''"),
        ('{"feature": 1, "label": " "}', 1, "a label is a text that is not empty, got ' '"),
        ('{"feature": 1, "label": 7}', 1, "a label is a text that is not empty, got 7"),
        ('{"feature": 1, "label": "a\\nb"}', 1, "a label is one line without control characters, got 'a\\nb'"),
        ('{"feature": 1, "label": "\\u001b[2J"}', 1, "a label is one line without control characters, got '\\x1b[2J'"),
        ('{"feature": 1, "label": "\\ud800"}', 1, "is not readable JSON|a label is one line|must be text without NUL"),
        ('{"feature": 1, "label": "' + "a" * 1001 + '"}', 1, "a label has at most 1,000 characters, got 1,001"),
        (f'{LINE}\n{{"feature": 1, "label": "a", "note": "{"x" * 70_000}"}}', 2, "has more than 65,536 bytes"),
        (b'{"feature": 1, "label": "caf\xe9"}', 1, "is not UTF-8 (invalid continuation byte); save the file as UTF-8"),
        (LINE.encode("utf-16"), 1, "is not UTF-8 (invalid start byte); save the file as UTF-8"),
        ("[" * 100_000, 1, "has more than 65,536 bytes|is not readable JSON"),
        ("[" * 50_000, 1, "is not readable JSON"),
    ],
)
def test_lines_that_are_not_sound_are_named(served: SAE, content: str | bytes, line: int, said: str) -> None:
    sae, path = served, put(served._bundle.path, content)
    for read in (lambda: read_labels(path), lambda: sae.labels, lambda: sae.steer(make_x(2), Edit.ablate("include"))):
        with pytest.raises(ValueError, match="^line ") as refused:
            read()
        message = str(refused.value)
        assert re.match(f"line {line} of {re.escape(str(path / 'labels.jsonl'))}[:. ]", message), message
        assert any(part in message for part in said.split("|")), message
        assert "\n" not in message and "\x1b" not in message and len(message) < 500
    sae.steer(make_x(2), Edit.ablate(12))  # which asks for no labels


def test_files_that_are_too_large_or_no_files(path: Path, tmp_path: Path) -> None:
    put(path, "\n" * (65_536 + 150 * 5 * 1024 + 1))
    with pytest.raises(ValueError, match="labels.jsonl has more than 833,536 bytes, too many for such a file"):
        read_labels(path)
    (path / "labels.jsonl").unlink()
    os.mkfifo(path / "labels.jsonl")
    with pytest.raises(ValueError, match="labels.jsonl is a pipe, expected a file"):
        read_labels(path)
    (path / "labels.jsonl").unlink()
    (tmp_path / "secret").write_text(LINE)
    (path / "labels.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="labels.jsonl is a link out of its folder"):
        read_labels(path)


def test_a_loaded_sae_has_the_labels_that_the_file_has_now(path: Path) -> None:
    sae = load(path)
    assert dict(sae.labels) == {} and sae.labels is not None
    with pytest.raises(ValueError, match="'include' is a label, and there are none in .*labels.jsonl; write lines"):
        sae.steer(make_x(2), Edit.ablate("include"))
    put(path, LINE)
    assert dict(sae.labels) == {12: "include"}
    assert sae.labels is sae.labels  # not read again
    np.testing.assert_array_equal(
        sae.steer(make_x(9), Edit.set("include", 8.0)), sae.steer(make_x(9), Edit.set(12, 8.0))
    )
    put(path, LINE.replace("12", "13"))  # of the same size
    assert dict(sae.labels) == {13: "include"}
    assert dict(pickle.loads(pickle.dumps(sae)).labels) == {13: "include"}
    (path / "labels.jsonl").unlink()
    assert dict(sae.labels) == {}
    assert sae.encode(make_x(3)).shape == (3,)
    shutil.move(path, path.parent / "elsewhere")
    with pytest.raises(FileNotFoundError, match="does not exist any more, and its labels with it"):
        _ = sae.labels


def test_a_rebuilt_sae_has_the_labels_of_its_bundle(path: Path) -> None:
    sae = load(path, rebuild=True)
    write_labels(path, {12: "include"})
    assert dict(sae.labels) == {12: "include"}
    assert dict(pickle.loads(pickle.dumps(sae)).labels) == {12: "include"}


def test_written_labels_are_read_again_and_lines_that_stay_keep_their_other_fields(path: Path) -> None:
    line = {"note": "seen in C", "feature": 12, "label": " include", "by": "A"}
    put(path, "\ufeff" + json.dumps(line) + '\n{"feature": 3, "label": "old", "by": "B"}\n')
    new: dict[int, str] = {np.int64(7): "日本\u202e", **read_labels(path), 3: "new"}  # type: ignore[dict-item]
    write_labels(path, new)
    assert dict(read_labels(path)) == {3: "new", 7: "日本\u202e", 12: "include"}
    lines = (path / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"feature": 3, "label": "new"},
        {"feature": 7, "label": "日本\u202e"},
        line,
    ]
    assert "日本" in (path / "labels.jsonl").read_text(encoding="utf-8")
    write_labels(path, {})
    assert dict(read_labels(path)) == {}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({150: "a"}, "feature 150 does not exist, expected 0 to 149"),
        ({-1: "a"}, "feature -1 does not exist"),
        ({1: ""}, "a label is a text that is not empty"),
        ({1: "a\nb"}, "a label is one line"),
        ({"a": 1}, "labels are given by feature"),
    ],
)
def test_labels_that_are_not_sound_are_not_written(path: Path, labels: Any, said: str) -> None:
    write_labels(path, {12: "include"})
    with pytest.raises(ValueError, match=said):
        write_labels(path, {3: "fine", **labels})
    assert dict(read_labels(path)) == {12: "include"}
    assert [file.name for file in path.iterdir() if file.name.startswith(".")] == []


def test_labels_are_of_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="so it is not a bundle"):
        write_labels(tmp_path, {1: "a"})
    (tmp_path / "labels.jsonl").write_text(LINE)
    with pytest.raises(ValueError, match="so it is not a bundle"):
        read_labels(tmp_path)


def test_what_writes_into_a_bundle_keeps_its_labels(path: Path, tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + LINE.encode() + b"\r\n"
    put(path, content)
    np.save(tmp_path / "x.npy", make_x(400))
    export(path)
    put_stats(bundles.read(path), counted(np.ones(150, np.int64), np.ones(150), 10))
    calibrate_bundle(path, open_activations(tmp_path / "x.npy"), k=4.0)
    export(path)
    calibrate_bundle(path, open_activations(tmp_path / "x.npy"), k=4.0, out=path, force=True)
    calibrate_bundle(path, open_activations(tmp_path / "x.npy"), k=3.0, out=tmp_path / "other")
    for folder in (path, tmp_path / "other"):
        assert (folder / "labels.jsonl").read_bytes() == content
        assert "labels.jsonl" not in bundles.read(folder, calibrated=False).manifest.files


def test_labels_of_another_sae_are_not_replaced_and_do_not_stick(
    path: Path, bundle_of: BundleOf, tmp_path: Path
) -> None:
    """A new fit has other features, so it takes neither the place of a bundle with labels nor the labels."""
    put(path, LINE)
    read = bundles.read(path)
    with pytest.raises(FileExistsError, match="holds labels.jsonl, which would be lost; name another output"):
        bundles.write(path, read.weights() | {}, read.manifest, force=True)
    np.save(tmp_path / "x.npy", make_x(400))
    with pytest.raises(FileExistsError, match="holds labels.jsonl, which would be lost; name another output"):
        calibrate_bundle(bundle_of("mutual"), open_activations(tmp_path / "x.npy"), out=path, force=True)
    assert bundles.foreign(path) == "labels.jsonl"
    assert dict(read_labels(path)) == {12: "include"}


def test_the_document_makes_labels_of_an_export_of_neuronpedia(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (call,) = (block for block in blocks("guides/interop.md") if "explanations.jsonl" in block)
    rows = [
        {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "12", "description": " words about\n files", "v": []},
        {"modelId": "gpt2-small", "layer": "6-res-jb", "index": 3, "description": "caf\u00e9"},
    ]
    (tmp_path / "explanations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.rename(tmp_path / "my-sae")
    monkeypatch.chdir(tmp_path)
    exec(call, {})
    assert dict(read_labels("my-sae")) == {12: "words about files", 3: "café"}
    (line,) = blocks("guides/interop.md", "json")
    assert dict(read_labels(put(Path("my-sae"), line))) == {12: "include"}
