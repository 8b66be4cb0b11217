"""Labels against a dict and Python's own text functions: what a text means does not depend on how it was written."""

import json
import re
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from sae_runtime import Edit
from sae_runtime.bundle import labels as files
from sae_runtime.cli.edits import edits as options
from sae_runtime.core.edits import edit_arrays, resolved
from sae_runtime.core.labels import Labels, as_feature, as_label

D_SAE = 12
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and len(unicodedata.normalize("NFC", text)) < 900
)
WORDS = st.one_of(
    TEXTS, st.sampled_from(["a", "A", "a=b", "=", "x2", "=x2", '"a"', "café", "cafe\u0301", "Å", "-", "12"])
)
LABELS = st.dictionaries(st.integers(0, D_SAE - 1), WORDS, max_size=D_SAE)
FORMS: st.SearchStrategy[Any] = st.sampled_from(["NFC", "NFD"])


def key(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


@given(LABELS, WORDS, FORMS, st.sampled_from(["", " ", "\n", "\u3000"]))
@examples(25)
def test_a_label_means_the_one_feature_that_has_it(labels: dict[int, str], text: str, form: Any, blank: str) -> None:
    having = [feature for feature, label in labels.items() if key(label) == key(text)]
    written = blank + unicodedata.normalize(form, text) + blank
    known = Labels(labels)
    assert known == {feature: key(label) for feature, label in labels.items()}
    if len(having) == 1:
        assert known.feature(written) == having[0]
        return
    with pytest.raises(ValueError, match="that of features" if having else "is no label in|there are none in") as said:
        known.feature(written)
    assert "\n" not in str(said.value) and len(str(said.value)) < 800


@given(WORDS)
@examples(25)
def test_a_text_is_a_number_or_a_label_and_stays_what_it_is(text: str) -> None:
    feature = as_feature(text)
    assert feature == (int(text) if re.fullmatch("[+-]?[0-9]+", key(text)) else key(text))
    assert Edit.ablate(text).feature == Edit.ablate(feature).feature == feature
    if isinstance(feature, str):
        assert as_label(feature) == as_feature(feature) == feature


def as_file(labels: dict[int, str], more: list[Any], ending: str, mark: str, ascii: bool) -> bytes:
    lines = [
        json.dumps({"feature": feature, "label": label, "more": extra}, ensure_ascii=ascii)
        for (feature, label), extra in zip(labels.items(), more, strict=False)
    ]
    return (mark + ending.join(lines)).encode()


ANYTHING = st.one_of(st.none(), st.booleans(), st.floats(), st.lists(st.text(max_size=3), max_size=2))


@given(
    LABELS, st.lists(ANYTHING, min_size=D_SAE, max_size=D_SAE), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans()
)
@examples(8)
def test_files_hold_what_was_written(labels: dict[int, str], more: list[Any], ending: str, other: bool) -> None:
    with TemporaryDirectory() as name:
        path = Path(name)
        (path / "labels.jsonl").write_bytes(as_file(labels, more, ending, "\ufeff" * other, other))
        read = files.read_labels(path, D_SAE)
        assert read == {feature: key(label) for feature, label in labels.items()}
        with patch.object(files, "_features_of", lambda *_: D_SAE):
            files.write_labels(path, read)
            lines = (path / "labels.jsonl").read_text(encoding="utf-8").split("\n")
        assert len(lines) == len(labels) + 1 and lines[-1] == ""
        assert files.read_labels(path, D_SAE) == read
        assert {line["feature"]: "more" in line for line in map(json.loads, lines[:-1])} == dict.fromkeys(labels, True)


@given(
    st.lists(st.integers(0, D_SAE - 1), unique=True, max_size=4),
    st.sampled_from(["set", "add", "cap"]),
    st.booleans(),
    st.integers(-3, 3),
)
@examples(15)
def test_naming_a_feature_changes_no_edit(features: list[int], verb: str, multiple: bool, number: int) -> None:
    amount: dict[str, Any] = {"times": number} if multiple else {}
    names = {feature: f"label {feature}" for feature in range(D_SAE)}
    largest = np.linspace(0.5, 4, D_SAE).astype(np.float32)

    def made(feature: int | str) -> Edit:
        edit: Edit = getattr(Edit, verb)(feature, *([] if multiple else [number]), **amount)
        return edit

    by_number, by_label = [made(f) for f in features], [made(names[f]) for f in features]
    mixed = [*by_label[:1], *by_number[1:]]
    for edits in (by_label, mixed):
        assert resolved(edits, largest, names) == resolved(by_number, largest)
        arrays = edit_arrays([edits, []], D_SAE, largest, names)
        for name, array in edit_arrays([by_number, []], D_SAE, largest).items():
            np.testing.assert_array_equal(arrays[name], array)
    if features:
        with pytest.raises(ValueError, match=f"feature {features[0]} is edited twice"):
            edit_arrays([[*by_label, made(features[0])]], D_SAE, largest, names)


@given(WORDS, st.sampled_from(["set", "add", "scale", "cap"]), st.integers(-40, 40), st.booleans())
@examples(25)
def test_the_command_line_reads_every_label(text: str, verb: str, quarters: int, multiple: bool) -> None:
    """FEATURE=NUMBER, whatever signs the label holds; the shell has taken the quotes away."""
    import click

    got: list[Edit] = []
    command = click.Command("c", callback=options(lambda edits: got.extend(edits)))
    command.params = getattr(command.callback, "__click_params__", [])[::-1]
    number, multiple = quarters / 4, multiple and verb != "scale"
    arguments = [f"--{verb}={text}={'x' * multiple}{number}", f"--ablate={text}", "--only-active"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    amount: dict[str, Any] = {"times": number} if multiple else {}
    args = [] if multiple else [number]
    assert got == [
        Edit.ablate(text, only_active=True),
        getattr(Edit, verb)(text, *args, **amount, only_active=True),
    ]
