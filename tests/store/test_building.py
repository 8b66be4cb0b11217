"""A store's numbers are those of plain Python over the same documents, for every way that its matches are cut up."""

import dataclasses
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_features import WORDS, Document, MadeSource, made_documents, write_features

from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part
from sae_runtime.store.build_store import build_store
from sae_runtime.store.open_store import open_store

D_SAE, CONTEXT, BANDS, TOP, PER_BAND, BINS, NEAR = 24, 12, 4, 6, 2, 7, 8


@dataclasses.dataclass
class Row:
    """A token of the corpus."""

    doc: int
    pos: int
    word: str
    features: dict[int, float]


def rows_of(documents: list[Document]) -> list[Row]:
    return [Row(d, t, word, doc.features[t]) for d, doc in enumerate(documents) for t, word in enumerate(doc.words)]


def surroundings(documents: list[Document], row: Row) -> tuple[str | None, ...]:
    words = documents[row.doc].words
    return tuple(words[i] if 0 <= i < len(words) else None for i in range(row.pos - NEAR, row.pos + NEAR + 1))


def contexts_of(documents: list[Document], ranked: list[tuple[float, Row]]) -> list[tuple[int, float, int, int]]:
    """Band, value, document and position of the contexts of a feature."""
    taken: list[tuple[int, float, Row]] = []
    for band in range(BANDS):
        considered, own = set(), 0
        for rank, (value, row) in enumerate(ranked):
            text = surroundings(documents, row)
            if rank * BANDS // len(ranked) != band or own == (PER_BAND if band else TOP) or text in considered:
                continue
            considered.add(text)
            if any(
                text == surroundings(documents, other)
                or (other.doc == row.doc and abs(other.pos - row.pos) < CONTEXT // 2)
                for _, _, other in taken
            ):
                continue
            taken.append((band, value, row))
            own += 1
    return [(band, value, row.doc, row.pos) for band, value, row in taken]


def plain(documents: list[Document], feature: int) -> dict[str, Any]:
    """The statistics of a feature by lists and dictionaries."""
    rows = rows_of(documents)
    found = [(row.features[feature], row) for row in rows if feature in row.features]
    ranked = sorted(found, key=lambda each: -each[0])  # stable: earlier rows first
    values = [value for value, _ in ranked]
    histogram = [0] * BINS
    for value in values:
        histogram[max(math.ceil(value / values[0] * BINS) - 1, 0)] += 1
    of_band = defaultdict(list)
    for rank, value in enumerate(values):
        of_band[rank * BANDS // len(values)].append(value)
    of_word = defaultdict(list)
    for value, row in found:
        of_word[row.word].append(value)
    top = sorted(of_word, key=lambda word: (-math.fsum(of_word[word]), WORDS.index(word)))[:10]
    return {
        "count": len(values),
        "density": len(values) / len(rows),
        "mean": math.fsum(values) / len(values) if values else 0,
        "max": values[0] if values else 0,
        "histogram": histogram,
        "bands": [(min(of_band[b], default=0), max(of_band[b], default=0), len(of_band[b])) for b in range(BANDS)],
        "top": {word: (len(of_word[word]), math.fsum(of_word[word]) / len(of_word[word])) for word in top},
        "contexts": contexts_of(documents, ranked),
    }


def correlations(documents: list[Document], feature: int) -> dict[int, float]:
    """Phi with each other feature, as Pearson's correlation of zeros and ones."""
    active = np.array([[i in row.features for i in range(D_SAE)] for row in rows_of(documents)], np.float64)
    found = {}
    for other in range(D_SAE):
        both = (active[:, feature] * active[:, other]).sum()
        if other != feature and both >= 3 and active[:, other].std() > 0 and active[:, feature].std() > 0:
            found[other] = float(np.corrcoef(active[:, feature], active[:, other])[0, 1])
    return {other: phi for other, phi in found.items() if phi > 1e-12}


@pytest.mark.parametrize(("seed", "limit"), [(0, 1 << 20), (1, 300), (2, 40)])
def test_statistics_of_every_feature_are_those_of_plain_python(
    seed: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits put all features into one bucket, a few into each, and cut the matches of one feature by value.

    Few candidates are looked at in the first round, so that there are many rounds.
    """
    monkeypatch.setattr("sae_runtime.store.choosing._FIRST", 1 + seed)
    documents = made_documents(10 + 8 * seed, seed=seed, d_sae=D_SAE)
    features = write_features(tmp_path / "features", MadeSource(documents, D_SAE))
    settings: dict[str, Any] = {"context": CONTEXT, "bands": BANDS, "top": TOP, "per_band": PER_BAND, "bins": BINS}
    build_store(features, tmp_path / "store", limit=limit, **settings)
    store = open_store(tmp_path / "store", verify=True)
    assert (store.description.tokens, store.description.documents) == (len(rows_of(documents)), len(documents))
    for found in store:
        expected = plain(documents, found.feature)
        assert (found.count, found.max) == (expected["count"], expected["max"])
        assert (found.density, found.mean) == pytest.approx((expected["density"], expected["mean"]), rel=1e-12)
        assert found.histogram[1].tolist() == expected["histogram"]
        bands = [(band.low, band.high, band.count) for band in found.bands]
        assert bands == (expected["bands"] if found.count else [])
        assert {text: (n, pytest.approx(mean, rel=1e-6)) for text, n, mean in found.top_tokens} == expected["top"]
        assert [text for text, _, _ in found.top_tokens] == list(expected["top"])
        places = [(c.band, c.value, c.doc, pos_of_peak(documents, c)) for c in found.contexts]
        assert places == expected["contexts"]
        assert found.together is not None
        phi = correlations(documents, found.feature)
        best = sorted(phi.values(), reverse=True)[:10]
        assert [value for _, value in found.together] == pytest.approx(best, rel=1e-5)
        assert all(value == pytest.approx(phi[other], rel=1e-5) for other, value in found.together)


def pos_of_peak(documents: list[Document], context: Any) -> int:
    begin, _ = context.offsets[context.peak].tolist()
    return [place[0] for place in documents[context.doc].places()].index(context.begin + begin)


def test_a_context_has_its_text_values_and_origin(tmp_path: Path) -> None:
    documents = made_documents(16, D_SAE)
    features = write_features(tmp_path / "features", MadeSource(documents, D_SAE))
    build_store(features, tmp_path / "store", context=CONTEXT, licence="CC0")
    store = open_store(tmp_path / "store")
    for feature in (0, 1, 8):
        for context in store.feature(feature).contexts:
            document = documents[context.doc]
            pos = pos_of_peak(documents, context)
            first = max(min(pos - CONTEXT // 2, len(document.words) - CONTEXT), 0)
            words = document.words[first : first + CONTEXT]
            assert (context.tokens, context.peak) == (words, pos - first)
            expected = [document.features[first + t].get(feature, 0.0) for t in range(len(words))]
            assert context.values.tolist() == expected and context.values[context.peak] == context.value
            assert document.text[context.begin : context.end] == context.text == " ".join(words)
            origin = ("data/a.jsonl", 2 * context.doc + 1, document.id, document.licence or "CC0")
            assert (context.file, context.row, context.id, context.licence) == origin


class SpecialSource(MadeSource):
    """The first and last word of each document stand for special tokens: they have the characters 0 to 0."""

    def rows(self, part: Part) -> PartRows:
        made = super().rows(part)
        assert made.begin is not None and made.end is not None
        special = np.diff(made.doc, prepend=-1).astype(bool) | np.diff(made.doc, append=-1).astype(bool)
        begin, end = (np.where(special, 0, each).astype(np.int32) for each in (made.begin, made.end))
        return dataclasses.replace(made, begin=begin, end=end)


def test_special_tokens_at_the_ends_of_a_context_leave_its_text_whole(tmp_path: Path) -> None:
    documents = made_documents(12, D_SAE)
    features = write_features(tmp_path / "features", SpecialSource(documents, D_SAE))
    build_store(features, tmp_path / "store", context=CONTEXT)
    special = 0
    for context in (one for feature in (0, 1) for one in open_store(tmp_path / "store").feature(feature).contexts):
        assert context.text == documents[context.doc].text[context.begin : context.end]
        assert context.text == " ".join(filter(None, context.tokens))
        special += context.tokens[0] == "" and len(context.tokens) > 2
    assert special > 3


def test_the_same_input_gives_the_same_bytes_for_any_limit(tmp_path: Path) -> None:
    features = write_features(tmp_path / "features", MadeSource(made_documents(8), D_SAE))
    contents = []
    for number, limit in enumerate((1 << 20, 1 << 20, 300)):
        build_store(features, tmp_path / str(number), limit=limit)
        files = sorted((tmp_path / str(number)).iterdir())
        contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1] and set(contents[0]) == set(contents[2])


def test_a_store_of_documents_has_shares_of_documents_and_their_beginnings(tmp_path: Path) -> None:
    documents = made_documents(16, D_SAE)
    features = write_features(tmp_path / "features", MadeSource(documents, D_SAE), per="document", pool="max")
    build_store(features, tmp_path / "store")
    store = open_store(tmp_path / "store")
    pooled = [{i: max(f.get(i, 0) for f in d.features) for f in d.features for i in f} for d in documents]
    for found in store:
        values = sorted((one[found.feature] for one in pooled if found.feature in one), reverse=True)
        assert found.count == len(values) and found.density == len(values) / len(documents)
        assert found.top_tokens == [] and found.max == (values[0] if values else 0)
        if values:
            first = found.contexts[0]
            assert first.value == values[0] == pooled[first.doc][found.feature]
            assert first.text == first.tokens[0] == documents[first.doc].text[:400]
        texts = [context.text for context in found.contexts]
        assert len(texts) == len(set(texts))


def test_a_store_without_texts_names_tokens_by_the_vocabulary_else_by_numbers(tmp_path: Path) -> None:
    documents = made_documents(16, D_SAE)
    with_names = write_features(tmp_path / "ids", MadeSource(documents, D_SAE, keep_text=False))
    build_store(with_names, tmp_path / "store")
    context = open_store(tmp_path / "store").feature(1).contexts[0]
    assert context.text is None and context.offsets is None
    assert set(context.tokens) <= set(documents[context.doc].words)
    (with_names / "vocabulary.parquet").unlink()
    made = build_store(with_names, tmp_path / "numbers")
    tokens = open_store(tmp_path / "numbers").feature(1).contexts[0].tokens
    assert tokens == [str(WORDS.index(word)) for word in context.tokens]
    assert any("--tokenizer" in sentence for sentence in made.left_out)
    build_store(
        with_names, tmp_path / "named", names=dict(enumerate(f"Ġ{word}" if word.isascii() else word for word in WORDS))
    )
    named = open_store(tmp_path / "named").feature(1).contexts[0].tokens
    assert named == [f" {word}" if word.isascii() else word for word in context.tokens]


def test_features_of_bare_arrays_have_a_store(tmp_path: Path) -> None:
    """Their tokens have no ids and no documents."""
    features = write_features(tmp_path / "bare", MadeSource(made_documents(16), D_SAE, known=False, keep_text=False))
    build_store(features, tmp_path / "store", context=6)
    store = open_store(tmp_path / "store")
    found = store.feature(1)
    assert found.label is None and found.count == store.count[1] > 0
    assert {(len(c.tokens), c.tokens[0], c.file, c.id) for c in found.contexts} == {(6, "?", None, None)}


def test_features_of_no_tokens_have_a_store(tmp_path: Path) -> None:
    documents = [Document(["a"], [{}], 0), Document(["x"], [{}], 1)]
    build_store(write_features(tmp_path / "features", MadeSource(documents, D_SAE)), tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert len(store) == D_SAE and not store.count.any()
    found = store.feature(3)
    assert (found.bands, found.contexts, found.label, found.together) == ([], [], None, [])


def test_rows_and_documents_are_counted_exactly(tmp_path: Path) -> None:
    documents = made_documents(30, D_SAE)
    features = write_features(tmp_path / "features", MadeSource(documents, D_SAE))
    build_store(features, tmp_path / "store", licence="CC0")
    known = open_store(tmp_path / "store").description
    of_row = [len(found) for document in documents for found in document.features]
    assert known.active == tuple(of_row.count(number) for number in range(max(of_row) + 1))
    licences = [document.licence or "CC0" for document in documents]
    assert known.by_licence == {licence: licences.count(licence) for licence in sorted({*licences})}
    assert known.by_file == {"data/a.jsonl": 30}
