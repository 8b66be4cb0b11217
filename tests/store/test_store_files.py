"""What a store takes from a bundle, and what is refused: other weights, altered files, unfinished folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_weights
from made_features import WORDS, MadeSource, made_documents, write_features

from sae_runtime.bundle.labels import write_labels
from sae_runtime.bundle.parts import STATS, WEIGHTS, read_manifest, record
from sae_runtime.bundle.stats import save_stats
from sae_runtime.bundle.token_logits import TokenLogits
from sae_runtime.store.build_store import build_store
from sae_runtime.store.open_store import open_store
from sae_runtime.store.relatives import neighbours

D_SAE = 150
CopyOf = Callable[..., Path]


@pytest.fixture
def bundle(copy_of: CopyOf) -> Path:
    return copy_of("mutual")


@pytest.fixture
def features(bundle: Path, tmp_path: Path) -> Path:
    return made(bundle, tmp_path / "features")


def made(bundle: Path, path: Path) -> Path:
    weights = read_manifest(bundle).files[WEIGHTS].sha256
    return write_features(path, MadeSource(made_documents(12, 20), D_SAE, facts={"weights_sha256": weights}))


def built(features: Path, path: Path, **settings: Any) -> Path:
    build_store(features, path, context=8, sample=0, **settings)
    return path


def put_logits(bundle: Path, logits: TokenLogits) -> None:
    """As splice does, into a bundle without graphs of its own hand."""
    manifest = json.loads((bundle / "sae_runtime.json").read_text())
    save_stats(bundle / STATS, None, logits)
    found = record(bundle / STATS)
    manifest["files"][STATS] = {"size": found.size, "sha256": found.sha256}
    (bundle / "sae_runtime.json").write_text(json.dumps(manifest))


def test_a_bundle_gives_neighbours_promoted_tokens_and_labels(bundle: Path, features: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens, logits = rng.integers(0, 15, (D_SAE, 10), np.int32), rng.random((D_SAE, 10), np.float32)
    put_logits(bundle, TokenLogits(tokens, logits, tokens[::-1], -logits))
    write_labels(bundle, {3: "open files"})
    found = open_store(built(features, tmp_path / "store", sae=bundle), sae=bundle).feature("open files")
    decoder = make_weights(D_SAE, "mutual")["W_dec"].astype(np.float64)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    cosines = decoder @ decoder[3]
    best = [int(i) for i in np.argsort(-cosines) if i != 3][:10]
    assert found.neighbours is not None and found.promoted is not None and found.suppressed is not None
    assert [i for i, _ in found.neighbours] == best
    assert [cosine for _, cosine in found.neighbours] == pytest.approx(cosines[best].tolist(), abs=1e-5)
    assert found.promoted == [(WORDS[t], x) for t, x in zip(tokens[3].tolist(), logits[3].tolist(), strict=True)]
    assert found.suppressed[0] == (WORDS[tokens[-4, 0]], -float(logits[3, 0]))
    assert (found.feature, found.label, found.label_source) == (3, "open files", "person")


def test_what_a_store_lacks_is_said(bundle: Path, features: Path, tmp_path: Path) -> None:
    store = open_store(built(features, tmp_path / "store", sae=bundle))
    assert store.feature(3).promoted is None and store.feature(3).together is None
    said = " ".join(store.description.left_out)
    assert "no promoted tokens" in said and "active together" in said and "--sae" not in said
    assert "--sae" in " ".join(open_store(built(features, tmp_path / "bare")).description.left_out)


def test_labels_are_read_afresh_and_stay_when_the_store_is_built_again(features: Path, tmp_path: Path) -> None:
    path = built(features, tmp_path / "store")
    store = open_store(path)
    assert store.feature(0).label_source == "top tokens"
    lines = [{"feature": 0, "label": "zero"}, {"feature": 1, "label": "one", "source": "Neuronpedia"}]
    (path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = [(store.feature(i).label, store.feature(i).label_source) for i in (0, 1)]
    assert labels == [("zero", "person"), ("one", "Neuronpedia")]
    before = (path / "labels.jsonl").read_bytes()
    built(features, path, force=True)
    assert (path / "labels.jsonl").read_bytes() == before and store.feature("zero").feature == 0
    with pytest.raises(FileExistsError, match="already exists"):
        built(features, path)
    description = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(description | {"weights_sha256": "f" * 64}))
    with pytest.raises(FileExistsError, match="labels.jsonl of another SAE"):
        built(features, path, force=True)
    assert (path / "labels.jsonl").read_bytes() == before


def test_a_bundle_of_other_weights_is_refused(features: Path, copy_of: CopyOf, tmp_path: Path) -> None:
    other = copy_of("token")
    with pytest.raises(ValueError, match="features of other weights than"):
        built(features, tmp_path / "store", sae=other)
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="features of other weights than"):
        open_store(built(features, tmp_path / "store"), sae=other)


def test_an_altered_part_is_refused_and_leaves_nothing(features: Path, tmp_path: Path) -> None:
    for part in (features / "tokens/part-00001.parquet", features / "documents/part-00000.parquet"):
        content = bytearray(part.read_bytes())
        content[len(content) // 3] ^= 4
        sound = part.read_bytes()
        part.write_bytes(content)
        with pytest.raises(ValueError, match="altered"):
            built(features, tmp_path / "store")
        part.write_bytes(sound)
        assert [path.name for path in tmp_path.iterdir() if "store" in path.name] == []


def test_features_that_are_not_finished_are_refused(features: Path, tmp_path: Path) -> None:
    (features / "features.json").unlink()
    with pytest.raises(ValueError, match="is not finished; run the same extract again"):
        built(features, tmp_path / "store")


def some_features(path: Path) -> list[str]:
    store = open_store(path)
    return [repr(store.feature(number)) for number in (0, 1, 19)]


@pytest.mark.parametrize("name", ["features.parquet", "contexts.parquet", "vocabulary.parquet"])
def test_an_altered_store_is_noticed(name: str, features: Path, tmp_path: Path) -> None:
    path = built(features, tmp_path / "store")
    sound = (path / name).read_bytes()
    seen = some_features(path)
    for at in np.linspace(4, len(sound) - 1, 4).astype(int):
        content = bytearray(sound)
        content[at] ^= 16
        (path / name).write_bytes(content)
        with pytest.raises(ValueError, match="was altered"):
            open_store(path, verify=True)
        try:
            assert some_features(path) == seen
        except ValueError as error:
            assert f"{name} was altered since the store was built" in str(error)
    (path / name).write_bytes(sound[:-3])
    with pytest.raises(ValueError, match="truncated or altered"):
        open_store(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match="is missing"):
        open_store(path)


def test_what_is_no_store_is_refused(features: Path, tmp_path: Path) -> None:
    for path, why in ((features, "holds no store.json"), (tmp_path / "none", "does not exist")):
        with pytest.raises(ValueError, match=f"{why}, so it is no feature store"):
            open_store(path)
    path = built(features, tmp_path / "store")
    description = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps(description | {"format_version": 9}))
    with pytest.raises(ValueError, match="format version 9"):
        open_store(path)


def test_features_that_do_not_exist_are_refused(features: Path, tmp_path: Path) -> None:
    store = open_store(built(features, tmp_path / "store"))
    for wrong, why in ((D_SAE, "expected 0 to 149"), (-1, "does not exist"), (True, "number or its label")):
        with pytest.raises(ValueError, match=why):
            store.feature(wrong)
    with pytest.raises(ValueError, match="'no such' is a label, and people gave none in"):
        store.feature("no such")


@pytest.mark.parametrize("wrong", [{"bands": 0}, {"bands": 101}, {"top": 0}, {"bins": -1}, {"limit": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, int], features: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        build_store(features, tmp_path / "store", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="would be inside the features"):
        build_store(features, features / "store")


def test_a_folder_of_other_files_is_never_replaced(features: Path, tmp_path: Path) -> None:
    path = built(features, tmp_path / "store")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which would be lost"):
        built(features, path, force=True)
    shutil.rmtree(path)
    path.mkdir()
    (path / "labels.jsonl").write_text('{"feature": 0, "label": "mine"}\n')
    with pytest.raises(FileExistsError, match="would be lost"):
        built(features, path, force=True)


def test_neighbours_are_exact_in_blocks_with_ties_and_rows_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    decoder = rng.integers(-1, 2, (90, 5)).astype(np.float32)
    monkeypatch.setattr("sae_runtime.store.relatives._BLOCK", 16)
    monkeypatch.setattr("sae_runtime.store.relatives._OTHERS", 24)
    lengths = np.linalg.norm(decoder.astype(np.float64), axis=1)
    assert (lengths == 0).any()
    for row, found in enumerate(neighbours(decoder)):
        others = [i for i in range(90) if i != row and lengths[i] and lengths[row]]
        cosines = {i: round(float(decoder[i] @ decoder[row] / lengths[i] / lengths[row]), 5) for i in others}
        best = sorted(others, key=lambda i: (-cosines[i], i))[:10]
        assert [i for i, _ in found] == best
        assert [value for _, value in found] == pytest.approx([cosines[i] for i in best], abs=2e-6)
