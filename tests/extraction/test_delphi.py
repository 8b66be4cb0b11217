"""The layout that EleutherAI delphi 0.1.3 writes and reads: file names, tensors, types and config."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy
from conftest import D_IN, make_x

from sae_runtime import SAE, Activations, Features, load, open_activations
from sae_runtime.extraction import delphi
from sae_runtime.extraction.delphi_cache import cache

BundleOf = Callable[..., Path]


def harvested(folder: Path, n: int, *, hook: str | None = "layer.1") -> Activations:
    folder.mkdir()
    ids = np.arange(n, dtype=np.int32)
    tensors = {"activations": make_x(n), "tokens": 7 * ids, "documents": ids // 50, "positions": ids % 50}
    safetensors.numpy.save_file(tensors, folder / "shard-00000.safetensors")
    shards = [{"file": "shard-00000.safetensors", "rows": n}]
    index = {"format_version": 1, "shards": shards, "d_in": D_IN, "model": "tiny", "hook": hook}
    (folder / "activations.json").write_text(json.dumps(index))
    return open_activations(folder)


def read_back(folder: Path, sequence: int, tokens: int, d_sae: int) -> np.ndarray[Any, Any]:
    """Dense features [tokens, d_sae], read from the files as delphi's loader reads them."""
    dense = np.zeros((tokens, d_sae), np.float32)
    for file in folder.glob("*.safetensors"):
        first = int(file.name.split("_")[0])
        data = safetensors.numpy.load_file(file)
        assert data["locations"].dtype in (np.uint16, np.uint32) and data["locations"].ndim == 2
        assert data["tokens"].dtype == np.int64
        np.testing.assert_array_equal(data["tokens"].ravel(), 7 * np.arange(tokens))
        batch, position, feature = data["locations"].astype(np.int64).T
        assert (position < sequence).all() and (np.diff(batch * sequence + position) >= 0).all()
        assert (dense[batch * sequence + position, feature + first] == 0).all()
        dense[batch * sequence + position, feature + first] = data["activations"]
    return dense


@pytest.mark.parametrize("rule", ["served", "batch"])
@pytest.mark.parametrize("values", ["float16", "float32"])
def test_a_cache_holds_what_encode_gives(
    sae: SAE, tmp_path: Path, rule: Literal["served", "batch"], values: Literal["float16", "float32"]
) -> None:
    activations = harvested(tmp_path / "acts", 5003)
    settings: dict[str, Any] = {"rule": rule, "values": values, "sequence": 50}
    made = cache(sae, activations, tmp_path / "cache", **settings)
    folder = tmp_path / "cache" / "layer.1"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["layer.1"]
    names = {"config.json", *(f"{begin}_{begin + 29}.safetensors" for begin in range(0, 150, 30))}
    assert {path.name for path in folder.iterdir()} == names
    found = read_back(folder, 50, 5000, 150)
    x = make_x(5003)[:5000]
    expected = sae.encode_batch(x) if rule == "batch" else sae.encode(x)
    np.testing.assert_array_equal(found, expected.to_dense().astype(values))
    assert (made.tokens, made.matches) == (5000, len(expected.values))
    config = json.loads((folder / "config.json").read_text())
    description = config.pop("sae_runtime")
    assert config == {"model_name": "tiny", "cache_ctx_len": 50, "n_tokens": 5000, "n_splits": 5}
    assert description["rule"] == rule and description["values"] == values


def test_files_cover_all_features_without_gap(bundle_of: BundleOf, tmp_path: Path) -> None:
    features, ids = load(bundle_of("mutual")).encode(make_x(256)), 7 * np.arange(256, dtype=np.int32)
    description = {
        "architecture": {"d_sae": 150},
        "model": "tiny",
        "hook": "layer.1",
        "tokens": 256,
        "values": "float16",
    }
    (tmp_path / "cache").mkdir()
    runs = [(features[:100], ids[:100]), (features[100:], ids[100:])]
    delphi.write(tmp_path / "cache", runs, description, sequence=256, l0=24, file_matches=300)
    folder = tmp_path / "cache" / "layer.1"
    edges = sorted(tuple(map(int, path.stem.split("_"))) for path in folder.glob("*.safetensors"))
    assert len(edges) == 21  # 256 tokens with 24 features each
    assert edges[0][0] == 0 and edges[-1][1] == 149
    assert all(end + 1 == begin for (_, end), (begin, _) in zip(edges[:-1], edges[1:], strict=True))
    np.testing.assert_array_equal(read_back(folder, 256, 256, 150), features.to_dense().astype(np.float16))


def test_a_value_beyond_float16_is_named_by_its_row_of_all(tmp_path: Path) -> None:
    values = np.array([1, 65505], np.float32)
    large = Features(np.array([0, 0, 2]), np.arange(2, dtype=np.int32), values, 150, (2,))
    runs = [(large[:1], np.zeros(1, np.int32)), (large[1:], np.zeros(1, np.int32))]
    description = {"architecture": {"d_sae": 150}, "model": None, "hook": "h", "tokens": 2, "values": "float16"}
    with pytest.raises(ValueError, match="row 1 has a value of 65505, too large for float16"):
        delphi.write(tmp_path, runs, description, sequence=1, l0=1)


def test_locations_are_uint32_where_uint16_is_too_small(tmp_path: Path) -> None:
    n = (1 << 16) + 3
    each = Features(np.arange(n + 1), np.full(n, 7, np.int32), np.ones(n, np.float32), 150, (n,))
    description = {"architecture": {"d_sae": 150}, "model": None, "hook": "layer.1", "tokens": n, "values": "float16"}
    assert delphi.write(tmp_path, [(each, np.zeros(n, np.int32))], description, sequence=1, l0=1) == n
    data = safetensors.numpy.load_file(tmp_path / "layer.1" / "0_29.safetensors")
    assert data["locations"].dtype == np.uint32
    np.testing.assert_array_equal(data["locations"], np.stack([np.arange(n), np.zeros(n), np.full(n, 7)], axis=1))


def test_activations_without_tokens_hook_or_a_whole_sequence_are_refused(bundle_of: BundleOf, tmp_path: Path) -> None:
    sae, out = load(bundle_of("mutual")), tmp_path / "cache"
    np.save(tmp_path / "x.npy", make_x(300))
    with pytest.raises(
        ValueError, match=r"x\.npy does not know its tokens, which delphi shows to its explainers; harv"
    ):
        cache(sae, open_activations(tmp_path / "x.npy"), out)
    for number, hook in enumerate((None, "../up", "..")):
        with pytest.raises(ValueError, match=r"a folder named by their hook, but that of .* is .*; harvest"):
            cache(sae, harvested(tmp_path / str(number), 300, hook=hook), out)
    activations = harvested(tmp_path / "acts", 300)
    with pytest.raises(ValueError, match="has 300 tokens, fewer than a sequence of 301; give more text or a sho"):
        cache(sae, activations, out, sequence=301)
    for sequence in (0, -1, 1 << 16):
        with pytest.raises(ValueError, match=f"a sequence must have 1 to 65535 tokens, got {sequence}"):
            cache(sae, activations, out, sequence=sequence)
    assert not out.exists()


def test_force_replaces_a_cache_and_nothing_else(bundle_of: BundleOf, tmp_path: Path) -> None:
    sae, activations, out = load(bundle_of("mutual")), harvested(tmp_path / "acts", 300), tmp_path / "cache"
    cache(sae, activations, out)
    with pytest.raises(FileExistsError, match="cache already exists; pass --force"):
        cache(sae, activations, out)
    cache(sae, activations, out, sequence=100, force=True)
    assert json.loads((out / "layer.1" / "config.json").read_text())["n_tokens"] == 300
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which would be lost; name another output"):
        cache(sae, activations, out, force=True)
    with pytest.raises(FileExistsError, match=r"notes\.txt is a file; name a folder"):
        cache(sae, activations, out / "notes.txt", force=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_cache_needs_no_pyarrow_and_a_folder(
    bundle_of: BundleOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    sae, activations = load(bundle_of("mutual")), harvested(tmp_path / "acts", 300)
    with pytest.raises(ValueError, match=r"f\.parquet ends in \.parquet, but delphi reads a folder; name a folder, or"):
        cache(sae, activations, tmp_path / "f.parquet")
    made = cache(sae, activations, tmp_path / "out")
    assert made.tokens == 256
    assert made.size == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
