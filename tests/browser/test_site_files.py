"""A site says what its stores say; the store's own reader of one feature is the second witness."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_features import MadeSource, made_documents, write_features
from made_store import context, feature, never_active, token, write_store
from site_of import features, names, overview, read, saes, text_of

from sae_runtime.browser.site.write_site import write_site
from sae_runtime.bundle import quota
from sae_runtime.bundle.folder import read as read_bundle
from sae_runtime.store.build_store import build_store
from sae_runtime.store.open_store import Store, open_store

D_SAE = 150


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    """A store of texts with a bundle of feature choice."""
    folder = tmp_path_factory.mktemp("store of texts")
    weights = read_bundle(bundle_of("feature")).manifest.files["sae_weights.safetensors"].sha256
    source = MadeSource(made_documents(30, D_SAE), D_SAE, facts={"weights_sha256": weights})
    write_features(folder / "features", source)
    build_store(folder / "features", folder / "store", sae=bundle_of("feature"), context=8)
    return folder / "store"


@pytest.fixture(scope="module")
def site(store: Path, tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("sites") / "site"
    write_site([store], folder, saes=[bundle_of("feature")])
    return folder


def digits(number: Any) -> Any:
    """A number, or numbers, with four significant digits."""
    return pytest.approx(number, rel=6e-4, abs=1e-9)


def test_each_feature_is_as_the_store_has_it(store: Path, site: Path) -> None:
    opened = open_store(store)
    shown = list(features(site))
    assert len(shown) == D_SAE and sum(bool(page["contexts"]) for page in shown) > 20
    assert [page["feature"] for page in shown] == list(range(D_SAE))
    for page in [*shown[:12], *shown[12::9]]:
        one = opened.feature(page["feature"])
        assert (page["count"], page["source"]) == (one.count, one.label_source)
        for name in ("density", "mean", "max"):
            assert page[name] == digits(getattr(one, name))
        assert page["histogram"] == one.histogram[1].tolist()
        assert [count for _, _, count in page["bands"]] == [band.count for band in one.bands]
        assert [count for _, count, _ in page["tokens"]] == [count for _, count, _ in one.top_tokens]
        assert [other for other, _ in page["neighbours"]] == [other for other, _ in one.neighbours or []]
        assert (page["promoted"], page["suppressed"]) == (None, None)
        assert [text_of(each["parts"]) for each in page["contexts"]] == [each.text for each in one.contexts]
        for each, known in zip(page["contexts"], one.contexts, strict=True):
            assert each["value"] == digits(known.value)
            assert each["parts"][each["peak"]] == [known.tokens[known.peak], each["value"]]
            active = [(part[0], part[1]) for part in each["parts"] if isinstance(part, list)]
            held = np.flatnonzero(known.values).tolist()
            assert [text for text, _ in active] == [known.tokens[place] for place in held]
            assert [value for _, value in active] == digits(known.values[held].tolist())
            assert (each["band"], each["row"], each["licence"]) == (known.band, known.row, known.licence)
            assert each["file"] == "a.jsonl" and (known.file or "").endswith("/a.jsonl")


def test_the_overview_has_the_figures_of_the_store_and_its_bundle(
    store: Path, site: Path, bundle_of: Callable[..., Path]
) -> None:
    opened, known = open_store(store), overview(site)
    of, manifest = opened.description, read_bundle(bundle_of("feature")).manifest
    assert (known["d_sae"], known["tokens"], known["documents"]) == (of.d_sae, of.tokens, of.documents)
    active = np.array(known["active"])
    assert active.sum() == of.tokens and active @ np.arange(len(active)) == of.matches
    assert known["l0"] == digits(of.matches / of.tokens)
    assert known["dead"] == (opened.count == 0).sum()
    falling = np.sort(opened.density[opened.density > 0])[::-1]
    assert known["density"]["value"] == digits(falling[np.array(known["density"]["rank"]) - 1].tolist())
    assert sum(known["histogram_of_density"]["counts"]) == len(falling)
    assert manifest.allocation is not None and manifest.allocation.quota is not None
    asked = quota.quotas(manifest.allocation.quota, manifest.allocation.k, D_SAE)
    assert known["law"]["value"] == digits(asked[np.array(known["law"]["rank"]) - 1].tolist())
    assert "feature choice" in known["law"]["what"] and known["allocation"] == "feature choice, k 6"
    assert known["texts"] == [{"file": "a.jsonl", "documents": 30}]
    assert [one["feature"] for one in known["starters"]] == sorted({one["feature"] for one in known["starters"]})
    assert saes(site)[0]["weights_sha256"] == of.weights_sha256


def test_one_walk_gives_what_single_reads_give(store: Path) -> None:
    def told(store: Store, number: int) -> Any:
        return _plain(store.feature(number))

    opened = open_store(store)
    assert [_plain(one) for one in opened.features(5, 30)] == [told(opened, number) for number in range(5, 30)]
    assert [one.feature for one in opened.features(147)] == [147, 148, 149]
    for one in opened.features(0, 9, per_band=[3, 1]):
        kept = [each for each in opened.feature(one.feature).contexts]
        most = {0: 3}
        expected = [
            each
            for place, each in enumerate(kept)
            if place - next(i for i, other in enumerate(kept) if other.band == each.band) < most.get(each.band, 1)
        ]
        assert [_plain(each) for each in one.contexts] == [_plain(each) for each in expected]


def test_only_so_many_contexts_are_shown(store: Path, tmp_path: Path) -> None:
    made = write_site([store], tmp_path / "site", top=3, per_band=1)
    assert made.per_band == (3, 1)
    for page in features(tmp_path / "site"):
        bands = [each["band"] for each in page["contexts"]]
        assert bands == sorted(bands) and bands.count(0) <= 3 and all(bands.count(band) <= 1 for band in range(1, 5))


def test_only_the_top_band_may_be_shown(tmp_path: Path) -> None:
    rows = [context("open the file", "file", 4.0 - band, band=band) for band in (0, 0, 1, 1)]
    path = write_store(tmp_path / "store", [feature(rows)])
    assert write_site([path], tmp_path / "site", per_band=0).per_band == (20, 0)
    assert [each["band"] for page in features(tmp_path / "site") for each in page["contexts"]] == [0, 0]
    for top, per_band in ((0, None), (None, -1)):
        with pytest.raises(ValueError, match="top is 1 or more contexts and per_band 0 or more"):
            write_site([path], tmp_path / "other", top=top, per_band=per_band)


def test_names_are_labels_and_top_tokens(tmp_path: Path) -> None:
    top = [token("open"), token("Open"), token("file"), token("##s")]
    path = write_store(tmp_path / "store", [feature(top_tokens=top), feature(), never_active()])
    lines = [{"feature": 1, "label": "cakes", "source": "llm"}]
    (path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_site([path], tmp_path / "site")
    assert names(tmp_path / "site") == [
        (None, ["open", "file", "s"], 0.01, 4),
        ("cakes", [], 0.01, 4),
        (None, [], 0, 0),
    ]
    first, second, third = features(tmp_path / "site")
    assert (first["label"], first["source"]) == ("open, file, s", "top tokens")
    assert (second["label"], second["source"]) == ("cakes", "llm")
    assert (third["label"], third["count"], third["bands"], third["contexts"]) == (None, 0, [], [])
    assert [one["feature"] for one in overview(tmp_path / "site")["starters"]] == []


def test_a_labelled_feature_is_looked_at_first(tmp_path: Path) -> None:
    one = feature([context("open the file", "file", 4.0)], count=30, top_tokens=[token("file", 30)])
    path = write_store(tmp_path / "store", [one] * 48)
    (path / "labels.jsonl").write_text('{"feature": 3, "label": "files"}\n')
    write_site([path], tmp_path / "site")
    starters = overview(tmp_path / "site")["starters"]
    assert [each["feature"] for each in starters] == [0, 3, *range(4, 48, 2)]
    assert (starters[1]["label"], text_of(starters[1]["text"])) == ("files", "open the file")
    assert (starters[0]["label"], starters[0]["tokens"]) == (None, ["file"]), "its top tokens are no label"


def test_features_of_documents_are_looked_at_first_although_they_are_dense(tmp_path: Path) -> None:
    dense = feature([context("open the file", "file", 4.0)], count=10, density=0.3)
    for per in ("document", "token"):
        write_site([write_store(tmp_path / per, [dense] * 24, per=per)], tmp_path / f"site-{per}")
        chosen = [one["feature"] for one in overview(tmp_path / f"site-{per}")["starters"]]
        assert chosen == (list(range(24)) if per == "document" else [])


def test_a_store_per_document_shows_the_beginnings_of_documents(tmp_path: Path) -> None:
    write_features(tmp_path / "features", MadeSource(made_documents(20, 8), 8), per="document")
    build_store(tmp_path / "features", tmp_path / "store")
    write_site([tmp_path / "store"], tmp_path / "site")
    known = overview(tmp_path / "site")
    assert known["per"] == "document" and sum(known["active"]) == 20
    opened = open_store(tmp_path / "store")
    for number, page in enumerate(features(tmp_path / "site")):
        assert [each["parts"][0][0] for each in page["contexts"]] == [
            each.text for each in opened.feature(number).contexts
        ]


def test_a_store_without_texts_shows_the_names_of_tokens(tmp_path: Path) -> None:
    bare = {"text": None, "begin": None, "end": None, "begins": None, "ends": None, "tokens": [0, 2, 1]}
    path = write_store(tmp_path / "store", [feature([context("x y z", "y", 2.0) | bare])])
    write_site([path], tmp_path / "site")
    (page,) = features(tmp_path / "site")
    assert page["contexts"][0]["parts"] == ["a ", ["c", 2], " b"] and page["contexts"][0]["peak"] == 1


def test_stores_of_older_versions_are_shown_without_what_they_do_not_know(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", [feature([context("open the file", "file", 4.0)])])
    write_site([path], tmp_path / "site")
    known = overview(tmp_path / "site")
    assert (known["active"], known["law"], known["measured"], known["allocation"]) == (None, None, None, None)
    assert (known["texts"], known["licences"]) == ([{"file": "a.jsonl", "documents": None}], ["MIT"])


def test_several_stores_stand_beside_each_other(tmp_path: Path) -> None:
    one = write_store(tmp_path / "a" / "store", [feature()])
    other = write_store(tmp_path / "b" / "store", [feature(), feature()])
    named = write_store(tmp_path / "c", [never_active()], sae="mutual")
    made = write_site([one, other, named], tmp_path / "site")
    assert made.saes == ("store", "store-2", "mutual") and made.features == 4
    assert [sae["folder"] for sae in saes(tmp_path / "site")] == ["data/store", "data/store-2", "data/mutual"]
    assert [len(list(features(tmp_path / "site", number))) for number in range(3)] == [1, 2, 1]


def test_a_site_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", [feature()])
    write_site([path], tmp_path / "site")
    with pytest.raises(FileExistsError, match="already exists; pass --force"):
        write_site([path], tmp_path / "site")
    write_site([path], tmp_path / "site", title="anew", force=True)
    assert read(tmp_path / "site" / "site.json")["title"] == "anew"
    (tmp_path / "site" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt, which would be lost"):
        write_site([path], tmp_path / "site", force=True)
    with pytest.raises(ValueError, match="would be inside the store"):
        write_site([path], path / "site")


def test_the_same_store_gives_the_same_bytes(
    site: Path, store: Path, tmp_path: Path, bundle_of: Callable[..., Path]
) -> None:
    write_site([store], tmp_path / "again", saes=[bundle_of("feature")])
    for path in site.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(site)).read_bytes()


def test_a_bundle_of_another_sae_is_refused(store: Path, tmp_path: Path, bundle_of: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="no store has the features of .*; name the bundles of the stores alone"):
        write_site([store], tmp_path / "site", saes=[bundle_of("token")])
    assert not (tmp_path / "site").exists()


def test_an_altered_store_leaves_no_half_site(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", [feature([context("open the file", "file", math.nan)])])
    with pytest.raises(ValueError, match="has rows that no store has"):
        write_site([path], tmp_path / "site")
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def _plain(value: Any) -> Any:
    """A record as plain values that compare."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
