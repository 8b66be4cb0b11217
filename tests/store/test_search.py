"""Features of a store are found by words: what the words are matters more than where they happen to stand."""

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.compute
import pytest
from made_store import context, feature, never_active, token, write_store

from sae_runtime import open_store
from sae_runtime.store.open_store import Store
from sae_runtime.store.search import pattern, terms

IN_CONTEXT, ON_THE_WORD, IN_PART, LABELLED, SEVERAL_TOKENS, SELDOM, NEVER = range(7)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    many = context("an unhappiness of sorts", "unhappiness", 3.0)
    many |= {"tokens": [1, 2, 3, 4], "begins": [0, 3, 5, 15], "ends": [2, 5, 14, 23], "peak": 2}
    features = [
        feature([context("Bake a file cake.", "cake.", 4.0)] * 2, top_tokens=[token("cake", 9)]),
        feature([context("Open the File now", "File", 4.0)], top_tokens=[token("File", 9), token("Bücher")]),
        feature([context("a profile of him", "profile", 4.0)], top_tokens=[token("profile", 9)]),
        feature([context("nothing else", "else", 4.0)], top_tokens=[token("else", 9)]),
        feature([many, context("unhappiness made him sad", "sad", 2.0)], top_tokens=[token("happiness", 9)]),
        feature([context("a file of mine", "mine", 4.0)], top_tokens=[token("mine", 9), token("file", 1)]),
        never_active(),
    ]
    folder = write_store(tmp_path_factory.mktemp("stores") / "store", features)
    lines = [{"feature": LABELLED, "label": "file names"}, {"feature": NEVER, "label": "Straße (old)"}]
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return open_store(folder)


def found(store: Store, query: str) -> list[int]:
    return [hit.feature for hit in store.search(query)]


def test_the_word_itself_comes_before_a_context_that_has_it(store: Store) -> None:
    assert found(store, "file") == [ON_THE_WORD, LABELLED, SELDOM, IN_PART, IN_CONTEXT]
    assert store.search("file")[0].places == ("top tokens", "at the peak", "in a context")
    assert store.search("file")[1].places == ("label",)
    assert store.search("file")[-1].places == ("in a context",)


def test_a_label_that_is_the_query_comes_first(store: Store) -> None:
    assert found(store, "FILE  names")[0] == LABELLED
    assert found(store, '"file names"') == [LABELLED]


def test_case_and_accents_are_read_as_unicode_says(store: Store) -> None:
    for query in ("bücher", "BÜCHER", "bu\u0308cher"):
        assert found(store, query) == [ON_THE_WORD]
    for query in ("STRASSE", "straße", "strasse"):
        assert found(store, query) == [NEVER]
    assert found(store, "bucher") == []


def test_every_word_must_be_there_and_a_phrase_as_it_stands(store: Store) -> None:
    assert found(store, "open file") == [ON_THE_WORD]
    assert found(store, "now open") == [ON_THE_WORD]
    assert found(store, '"now open"') == []
    assert found(store, '"the   file"') == [ON_THE_WORD]
    assert found(store, "open cake") == []


def test_a_word_of_several_tokens_is_found_at_its_peak(store: Store) -> None:
    (hit,) = store.search("unhappiness")
    assert (hit.feature, hit.places[0]) == (SEVERAL_TOKENS, "at the peak")
    assert hit.context is not None and hit.context.text == "an unhappiness of sorts"


def test_the_context_that_is_shown_has_the_words(store: Store) -> None:
    (hit,) = store.search("sad")
    assert hit.context is not None and hit.context.value == 2.0


@pytest.mark.parametrize("query", ["f.le", "fi[l]e", "(old", "file*", "^open", "a|b", "\\w", "(?i)", "%", "*"])
def test_no_sign_is_a_pattern(query: str, store: Store) -> None:
    assert found(store, query) == ([NEVER] if query == "(old" else [])


@pytest.mark.parametrize("query", ["", "  ", '""', '" "', '"'])
def test_a_query_without_a_word_is_refused(query: str, store: Store) -> None:
    with pytest.raises(ValueError, match="a search needs a word"):
        store.search(query)


def test_the_limit_counts_features(store: Store) -> None:
    assert len(store.search("file", 2)) == 2
    with pytest.raises(ValueError, match="1 feature or more"):
        store.search("file", 0)


def test_words_and_phrases_of_a_query() -> None:
    assert terms('a "B  c" "d') == ["a", "b c", "d"]
    assert terms("a A") == ["a"]


@pytest.mark.parametrize("term", ["a.b", "c++", "[x]", "\\", "日本", "a b", "\n", "$^"])
def test_a_pattern_matches_its_term_in_both_engines(term: str) -> None:
    import re

    import pyarrow
    import pyarrow.compute as pc

    texts = [f"x {term.upper()} y", "nothing", "axb c"]
    expected = [True, False, False]
    wanted = pattern(" ".join(term.split()) or "x")
    if term.strip():
        assert [bool(re.search(wanted, text)) for text in texts] == expected
        assert pc.match_substring_regex(pyarrow.array(texts), wanted).to_pylist() == expected


def test_a_store_without_texts_is_searched_by_labels_and_tokens(tmp_path: Path) -> None:
    bare = context("Open it", "it", 1.0) | dict.fromkeys(("text", "begin", "end", "begins", "ends"))
    opened = open_store(write_store(tmp_path / "store", [feature([bare], top_tokens=[token("Ġfile")])]))
    assert found(opened, "file") == [0]
    assert found(opened, "open") == []


def test_a_document_has_no_peak(tmp_path: Path) -> None:
    one = context("x", "x", 2.0) | {"text": "a file", "ends": [6], "end": 6}
    (hit,) = open_store(write_store(tmp_path / "store", [feature([one])], per="document")).search("file")
    assert hit.places == ("in a context",)


def test_a_store_without_contexts_is_searched(tmp_path: Path) -> None:
    assert found(open_store(write_store(tmp_path / "store", [never_active()])), "file") == []


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("İstanbul", "in İstanbul"),
        ("file", "a \ufb01le"),
        ("suffix", "su\ufb03x"),
        ("STRASSE", "Stra\u1e9ee"),
        ("ŉ", "ʼN"),
    ],
)
def test_a_letter_that_folds_to_several_is_found_in_contexts(query: str, text: str) -> None:
    [term] = terms(query)
    assert pyarrow.compute.match_substring_regex(pyarrow.array([text, "other"]), pattern(term)).to_pylist() == [
        True,
        False,
    ]
    assert re.search(pattern(term), text)


def test_a_query_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="a search is for text"):
        terms("file \udcff")
