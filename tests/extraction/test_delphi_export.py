"""delphi's cache of a folder of features: the same files as from the activations, and what it cannot hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from command_line import misused, refused, run
from conftest import D_IN, make_x

from sae_runtime import load, open_activations, read_features
from sae_runtime.extraction.array_source import ArraySource
from sae_runtime.extraction.delphi_cache import cache
from sae_runtime.extraction.delphi_export import write_delphi
from sae_runtime.extraction.extract import extract

ROWS = 1003


def harvested(folder: Path) -> Path:
    folder.mkdir()
    ids = np.arange(ROWS, dtype=np.int32)
    tensors = {"activations": make_x(ROWS), "tokens": 7 * ids, "documents": ids // 50, "positions": ids % 50}
    safetensors.numpy.save_file(tensors, folder / "shard-00000.safetensors")
    shards = [{"file": "shard-00000.safetensors", "rows": ROWS}]
    index = {"format_version": 1, "shards": shards, "d_in": D_IN, "model": "tiny", "hook": "layer.1"}
    (folder / "activations.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folder(bundle_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("delphi")
    activations = open_activations(harvested(home / "acts"))
    extract(ArraySource(load(bundle_of("mutual")), activations, part=250), home / "f", values="float32")
    return home / "f"


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(home.rglob("*.safetensors"))}


def test_it_is_the_cache_that_the_activations_give(
    folder: Path, bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    sae = load(bundle_of("mutual"))
    made = write_delphi(read_features(folder), tmp_path / "a", sequence=50)
    expected = cache(sae, open_activations(folder.parent / "acts"), tmp_path / "b", sequence=50)
    assert made == made.__class__(tokens=1000, matches=expected.matches, size=made.size)
    found, other = files(tmp_path / "a"), files(tmp_path / "b")
    assert found and set(found) == set(other) and found == other


def test_the_command_says_what_is_left_out_and_refuses_what_is_of_a_store(folder: Path, tmp_path: Path) -> None:
    result = run("features", "export", folder, "--format", "delphi", "-o", tmp_path / "c", "--sequence", "100")
    assert "3 tokens, which do not fill a sequence" in result.output and (tmp_path / "c" / "layer.1").is_dir()
    arguments: list[Any] = ["features", "export", folder, "--format", "delphi", "-o", tmp_path / "d"]
    assert "fewer than a sequence of 5000" in refused(*arguments, "--sequence", "5000")
    assert "already exists" in refused(*arguments[:-1], tmp_path / "c")
    assert "--upload does not go with --format delphi" in misused(*arguments, "--upload")


def test_rows_of_documents_or_without_tokens_have_no_cache(
    folder: Path, bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    sae, activations = load(bundle_of("mutual")), open_activations(folder.parent / "acts")
    extract(ArraySource(sae, activations), tmp_path / "f", per="document")
    with pytest.raises(ValueError, match="a row for each document, but delphi reads tokens"):
        write_delphi(read_features(tmp_path / "f"), tmp_path / "c")
    tensors = {"activations": activations.slice(0, 300).astype(np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    extract(ArraySource(sae, open_activations(tmp_path / "x.safetensors")), tmp_path / "g")
    with pytest.raises(ValueError, match="does not know its tokens"):
        write_delphi(read_features(tmp_path / "g"), tmp_path / "c")
    assert not (tmp_path / "c").exists()
