import difflib
import pickle
import re
import unicodedata
from typing import Any

import numpy as np
import pytest

from sae_runtime import Edit
from sae_runtime.core.edits import as_inputs, edit_arrays, resolved
from sae_runtime.core.labels import Labels, as_feature, as_label

LABELS = {12: "include", 40: "open file", 7: "a=b", 3: "café", 5: "12 monkeys", 9: "loop", 10: "loop"}


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("12", 12),
        (" 12 ", 12),
        ("-1", -1),
        ("+3", 3),
        ("007", 7),
        ("12 monkeys", "12 monkeys"),
        ("1.5", "1.5"),
        ("1_000", "1_000"),  # which int() reads
        ("١٢", "١٢"),  # Arabic digits, which int() reads too
        ("2k", "2k"),
        ("1" * 19, "1" * 19),
        ("open file", "open file"),
        ("\topen file\n", "open file"),
        ('"quoted"', '"quoted"'),
        ("a=b", "a=b"),
        ("Include", "Include"),
        ("cafe\u0301", "caf\u00e9"),
        ("שלום\u200f", "שלום\u200f"),
    ],
)
def test_a_whole_number_is_a_number_and_all_else_a_label(text: str, feature: int | str) -> None:
    assert as_feature(text) == feature
    assert Edit.ablate(text).feature == feature
    assert type(Edit.ablate(np.str_(text)).feature) is type(feature)


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "a\nb", "a\tb", "a\0", "\x1b[2J", "a\x7f", "a\u2028b", "\ud800", "a" * 1001]
)
def test_texts_that_are_no_labels_are_refused_in_one_line(text: str) -> None:
    for make in (as_label, Edit.ablate, lambda text: Labels({1: text}), lambda text: Labels({1: "a"}).feature(text)):
        with pytest.raises(ValueError, match="^a label (is|has at most 1,000)") as refused:
            make(text)
        assert str(refused.value).isprintable() and len(str(refused.value)) < 200


@pytest.mark.parametrize("text", [None, 12, 1.5, b"include", ["include"], {}])
def test_what_is_no_text_is_no_label(text: Any) -> None:
    with pytest.raises(ValueError, match="^a label is a text that is not empty, got "):
        Labels({1: text})


@pytest.mark.parametrize("labels", [{"include": 12}, {True: "a"}, {1.0: "a"}, {None: "a"}])
def test_labels_are_given_by_feature(labels: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("labels are given by feature, such as {12: 'include'}, got ")):
        Labels(labels)


def test_labels_are_a_mapping_and_find_features() -> None:
    labels = Labels({np.int64(12): " include ", 3: "cafe\u0301"})  # type: ignore[dict-item]
    assert dict(labels) == {12: "include", 3: "café"} == labels
    assert labels.feature("include") == 12 and labels.feature(unicodedata.normalize("NFD", "café")) == 3
    assert type(labels.feature("include")) is int
    assert pickle.loads(pickle.dumps(labels)).feature("café") == 3
    assert {**labels, 4: "more"} == {12: "include", 3: "café", 4: "more"}


def test_unknown_labels_name_the_closest() -> None:
    def said(label: str, labels: dict[int, str] = LABELS) -> str:
        with pytest.raises(ValueError, match="label") as refused:
            Labels(labels, source="sae/labels.jsonl").feature(label)
        return str(refused.value)

    assert said("Include") == "'Include' is no label in sae/labels.jsonl; the closest are 'include' (feature 12)"
    assert said("includ").endswith("the closest are 'include' (feature 12)")
    assert said("file").endswith("the closest are 'open file' (feature 40)")
    assert said("cafe").endswith("the closest are 'café' (feature 3)")
    whole = {1: "together", 2: "the, before names", 3: "others"}  # a label with the word before a shorter one without
    assert said("the", whole).endswith(
        "the closest are 'the, before names' (feature 2), 'others' (feature 3), 'together' (feature 1)"
    )
    assert said("zzzz") == "'zzzz' is no label in sae/labels.jsonl; name the feature by its number"
    assert said("a", {}) == (
        "'a' is a label, and there are none in sae/labels.jsonl; write lines such as "
        '{"feature": 12, "label": "include"}, or name the feature by its number'
    )
    assert said("loop") == "the label 'loop' is that of features 9, 10; name one by its number"
    many = {feature: "loop" for feature in range(100)}
    assert said("loop", many) == (
        "the label 'loop' is that of features 0, 1, 2, 3, 4 and 95 more; name one by its number"
    )


def test_an_unknown_label_is_compared_with_few_of_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all labels of a large SAE it would take 10 s."""
    compared: list[int] = []
    closest = difflib.get_close_matches

    def counted(word: str, known: list[str], n: int) -> list[str]:
        compared.append(len(known))
        return closest(word, known, n)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    labels = Labels({feature: f"words about {feature % 977} things and {feature}" for feature in range(20_000)})
    for label in ("Words about 5 things and 5", "words on 17 thinks end 40" * 30):
        with pytest.raises(ValueError, match="is no label|'words about 5 things and 5' "):
            labels.feature(label)
    assert compared and max(compared) <= 2000


def test_edits_by_label_are_those_by_number() -> None:
    by_label = [Edit.set("include", 8.0), Edit.cap("open file", times=2, only_active=True), Edit.add(1, 2.0)]
    by_number = [Edit.set(12, 8.0), Edit.cap(40, times=2, only_active=True), Edit.add(1, 2.0)]
    largest = np.linspace(0.5, 3, 50).astype(np.float32)
    for labels in (LABELS, Labels(LABELS)):
        assert resolved(by_label, largest, labels) == resolved(by_number, largest)
        assert resolved(by_number[:1], None, labels) == by_number[:1]
        for arrays in (edit_arrays, as_inputs):
            found = arrays([by_label, by_label[:1]], 50, largest, labels)
            wanted = arrays([by_number, by_number[:1]], 50, largest)
            assert found.keys() == wanted.keys()
            for name in wanted:
                np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize("arrays", [edit_arrays, as_inputs])
def test_edits_by_label_that_are_refused(arrays: Any) -> None:
    with pytest.raises(ValueError, match="^feature 12 is edited twice in one request; give one edit for it$"):
        arrays([[Edit.set("include", 8.0), Edit.ablate(12)]], 50, None, LABELS)
    with pytest.raises(ValueError, match="^feature 12 is edited twice"):
        arrays([[Edit.ablate("include"), Edit.ablate(" include")]], 50, None, LABELS)
    assert arrays([[Edit.ablate("include")], [Edit.ablate(12)]], 50, None, LABELS)["features"].tolist() == [[12], [12]]
    with pytest.raises(ValueError, match=r"^'include' is a label, and no labels were given; give them, or"):
        arrays([[Edit.ablate("include")]], 50)
    with pytest.raises(ValueError, match="^feature 40 does not exist, expected 0 to 12"):
        arrays([[Edit.ablate("open file")]], 13, None, LABELS)
    with pytest.raises(ValueError, match="^feature 40 does not exist, expected 0 to 12"):
        arrays([[Edit.set("open file", times=2)]], 13, np.ones(13, np.float32), LABELS)
    with pytest.raises(ValueError, match="^the label 'loop' is that of features 9, 10; name one by its number"):
        arrays([[Edit.ablate("loop")]], 50, None, LABELS)


def test_messages_about_edits_name_the_label() -> None:
    with pytest.raises(ValueError, match=r"^an edit of feature 'include' needs a number or times=, one of them"):
        Edit.set("include")
    with pytest.raises(ValueError, match=r"^an edit of feature 'include' needs finite float32 numbers, got nan"):
        Edit.scale("include", float("nan"))
    with pytest.raises(ValueError, match=r"inputs cannot say that this edit of feature 12 is only where"):
        as_inputs([[Edit.add("include", 1.0, only_active=True)]], 50, None, LABELS)
