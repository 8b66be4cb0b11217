"""Texts and names of a site: whole words, segments, bounds, and what strangers put into a store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_store import context, feature, token, write_store
from site_of import features, names, overview, saes, text_of

from sae_runtime.browser.site.folder_names import folder_names
from sae_runtime.browser.site.segments import segments
from sae_runtime.browser.site.sentences import Sentences
from sae_runtime.browser.site.shards import MOST
from sae_runtime.browser.site.write_site import write_site
from sae_runtime.store.records import Context

HOSTILE = [
    "../x",
    "<img src=x onerror=alert(1)>",
    "",
    "CON",
    "lpt1.txt",
    "a/b\\c",
    "\u202egnp",
    ".",
    "x" * 300,
    "Ä",
    "con",
]


def placed(text: str, places: list[tuple[int, int]], values: list[float], peak: int = 0, **more: Any) -> Context:
    """A context of tokens at these characters."""
    tokens = [text[begin:end] for begin, end in places]
    known: dict[str, Any] = {
        "band": 0,
        "value": values[peak],
        "doc": 0,
        "begin": 0,
        "end": len(text),
        "file": None,
        "row": None,
    }
    known |= {"id": None, "licence": None, "text": text, "peak": peak, "tokens": tokens}
    known |= {"ids": np.arange(len(places), dtype=np.int32), "values": np.array(values, np.float32)}
    return Context(**{**known, "offsets": np.array(places, np.int32).reshape(-1, 2), **more})


def written(tmp_path: Path, *rows: dict[str, Any], **described: Any) -> Path:
    """The site of a store with these features."""
    write_site([write_store(tmp_path / "store", rows, **described)], tmp_path / "site")
    return tmp_path / "site"


def name_of(token: int) -> str:
    return f"[{token}]"


@pytest.mark.parametrize(
    ("text", "places", "values", "expected"),
    [
        (
            "open the file",
            [(0, 4), (4, 8), (8, 13)],
            [0, 0, 2],
            (["open the ", ["file", 2]], 1),
        ),  # a token has its blank
        ("open", [(0, 0), (0, 4), (4, 4)], [1, 0, 0], ([["[0]", 1], "open"], 0)),  # [CLS]
        ("open", [(0, 4), (4, 4)], [3, 2], ([["open", 3], ["[1]", 2]], 0)),  # [SEP]
        ("a🙂b", [(0, 1), (1, 2), (1, 2), (2, 3)], [0, 1, 4, 0], (["a", ["🙂", 4], "b"], 1)),  # bytes of one character
        ("ab", [(0, 1), (1, 2)], [0, 0], ([["a", 0], "b"], 0)),  # a peak without a value
        ("", [(0, 0)], [1], ([["[0]", 1]], 0)),
        (" \n", [(0, 2)], [1], ([[" \n", 1]], 0)),
    ],
)
def test_segments_make_the_text(text: str, places: Any, values: list[float], expected: Any) -> None:
    peak = int(np.argmax(values))
    assert segments(placed(text, places, values, peak), name_of) == expected


def test_a_peak_among_bytes_of_a_character_is_that_character() -> None:
    found, peak = segments(placed("a🙂b", [(0, 1), (1, 2), (1, 2), (2, 3)], [0, 5, 4, 0], 2), name_of)
    assert found[peak] == ["🙂", 5]


def test_a_long_text_is_shown_near_its_peak() -> None:
    words = [f"word{number:05}" for number in range(4000)]
    text = " ".join(words)
    places = [(number * 10, number * 10 + 9) for number in range(4000)]
    found, peak = segments(placed(text, places, [1.0] * 4000, 3000), name_of)
    assert found[peak] == ["word03000", 1] and len(json.dumps(found)) < 20_000
    assert text_of(found).strip("…") in text and found[0] == "…" and found[-1] == "…"
    one = "x" * 3_000_000
    found, peak = segments(placed(f"{one} y {one}", [(len(one) + 1, len(one) + 2)], [1.0]), name_of)
    assert found[peak] == ["y", 1] and len(text_of(found)) < 10_000


@pytest.mark.parametrize(
    ("name", "text", "marked", "shown"),
    [
        ("##ing", "Loading a file", "ing", "Loading"),
        ("load", "loading; loading", "load", "loading"),
        ("load", "load or loading", "load", "load"),  # it is a word by itself too
        ("http", "An HTTP server", "HTTP", "HTTP"),
        ("##s", "menus", "s", "menus"),
        ("##s", "no such piece", "such", "s"),
        (" the", "in the end", "the", "the"),
        ("据", "我的数据在", "据", "据"),  # no blanks between words
        ("##arg", "__myarg__", "arg", "myarg"),
        ("[CLS]", "none", "none", "[CLS]"),
        (" ", "none", "none", " "),
    ],
)
def test_a_piece_is_shown_as_its_word(tmp_path: Path, name: str, text: str, marked: str, shown: str) -> None:
    """Each place of the marked text is an active token."""
    begins = [place for place in range(len(text)) if text.startswith(marked, place)]
    row = context("x", "x", 2.0) | {"text": text, "begins": begins, "ends": [b + len(marked) for b in begins]}
    row |= {"tokens": [0] * len(begins), "values": [2.0] * len(begins), "peak": 0, "end": len(text)}
    is_it = name.removeprefix("##").strip().casefold() == marked.casefold()
    one = feature([row], top_tokens=[token(name)])
    (page,) = features(written(tmp_path, one, vocabulary=[name if is_it else "another"]))
    assert page["tokens"] == [[shown, 5, 2]]


def test_a_token_has_no_words_of_another_one_of_the_same_letters(tmp_path: Path) -> None:
    text = "ingest a loading"
    row = context("x", "x", 2.0) | {"text": text, "begins": [0, 13], "ends": [3, 16], "end": len(text)}
    row |= {"tokens": [0, 1], "values": [2.0, 2.0], "peak": 0}
    for number, vocabulary in enumerate((["ing", "##ing"], [" ing", "ing"])):
        for place, word in enumerate(("ingest", "loading", "ing")):
            asked = (*vocabulary, "##Ing")[place]  # the last one is in no context
            one = feature([row], top_tokens=[token(asked)])
            (page,) = features(written(tmp_path / f"{number}{place}", one, vocabulary=[*vocabulary, "##Ing"]))
            assert page["tokens"][0][0].casefold() == word


def test_names_of_folders_are_safe_and_unique() -> None:
    made = folder_names(HOSTILE)
    assert len({name.lower() for name in made}) == len(HOSTILE)
    assert all(name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name.isascii() for name in made)
    assert all(name[0] not in ".-" and len(name) < 80 and name.lower() != "con" for name in made)
    assert made[0] == "x"


def test_hostile_names_stay_inside_the_site(tmp_path: Path) -> None:
    stores = [write_store(tmp_path / "in" / str(n), [feature()], sae=name) for n, name in enumerate(HOSTILE)]
    write_site(stores, tmp_path / "in" / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    for number, sae in enumerate(saes(tmp_path / "in" / "site")):
        assert sae["folder"] == f"data/{sae['name']}" and len(list(features(tmp_path / "in" / "site", number))) == 1


def test_texts_that_are_too_long_leave_every_file_small(tmp_path: Path) -> None:
    text = "数" * 600_000 + " file " + "é" * 300_000
    long = context("file", "file", 4.0) | {"text": text, "begins": [600_001], "ends": [600_005], "end": len(text)}
    huge = token("据" * 200_000)
    one = feature([long | {"file": "f" * 100_000, "licence": "l" * 100_000}] * 3, top_tokens=[huge] * 10)
    left_out = ["why " * 5_000] * 300
    site = written(tmp_path, *[one] * 3, left_out=left_out, model="m" * 100_000, hook="h" * 100_000)
    for path in (site / "data").rglob("*.json"):
        assert path.stat().st_size < 200_000 < MOST, path
    assert (site / "site.json").stat().st_size < 10_000
    page = next(features(site))
    assert page["contexts"][0]["parts"][1] == ["file", 4]
    assert page["tokens"][0][0] == "据" * 59 + "…" and len(page["contexts"][0]["licence"]) == 200


def test_shards_are_cut_by_bytes(tmp_path: Path) -> None:
    rows = [feature([context(f"{'word ' * 600}file", "file", 4.0)] * (20 * (number % 3))) for number in range(24)]
    site = written(tmp_path, *rows)
    assert [page["feature"] for page in features(site)] == list(range(24))
    sizes = [path.stat().st_size for path in sorted((site / "data").rglob("features/*.json"))]
    assert len(sizes) > 1 and max(sizes) < 600_000
    assert overview(site)["shards"]["names"] == [0]


def test_a_feature_with_much_of_everything_stays_small(tmp_path: Path) -> None:
    """A store may come from a stranger, or have a thousand bins and a hundred bands."""
    pairs = [{"feature": 0, "value": 0.5}] * 5_000
    logits = [{"token": 0, "text": "a", "logit": 0.5}] * 5_000
    text = "🙂" * 1900 + " file " + "🙂" * 1900
    one = context("file", "file", 4.0) | {"text": text, "begins": [1901], "ends": [1905], "end": len(text)}
    more = {"neighbours": pairs, "together": pairs, "promoted": logits, "top_tokens": [token("a")] * 5_000}
    more |= {"histogram": [1] * 10_000, "bands": [{"low": 1.0, "high": 4.0, "count": 9}] * 100}
    row = feature([one | {"band": band} for band in range(100) for _ in range(5)], **more)
    site = written(tmp_path, row, bins=10_000, bands=100, per_band=[20] * 100)
    (page,) = features(site)
    assert sum(page["histogram"]) == 10_000 and len(page["histogram"]) == 200 and page["edges"][:2] == [0, 0.02]
    assert 10 < len(page["contexts"]) < 500 and len(page["neighbours"]) == len(page["tokens"]) == 50
    assert max(path.stat().st_size for path in (site / "data").rglob("*.json")) < MOST / 2


def test_bins_that_are_put_together_keep_their_edges(tmp_path: Path) -> None:
    row = feature(count=250, max=25.0, histogram=[1] * 250)
    (page,) = features(written(tmp_path, row, bins=250))
    edges, counts = np.array(page["edges"]), np.array(page["histogram"])
    assert len(edges) == len(counts) + 1 <= 201 and counts.sum() == 250
    assert np.allclose(np.diff(edges), counts * 0.1, atol=1e-6), "a bin of two is as wide as two"
    (page,) = features(written(tmp_path / "few", feature()))
    assert page["histogram"] == [4, 3, 2, 1] and "edges" not in page, "bins that are equal need no edges"


def test_labels_of_every_kind_are_kept_as_texts(tmp_path: Path) -> None:
    labels = ["<img src=x>", "\u202egnp.exe", "🙂 👩‍👩‍👧", "a\u0000b", "x" * 900]
    path = write_store(tmp_path / "store", [feature() for _ in labels])
    lines = [{"feature": n, "label": label} for n, label in enumerate(labels) if "\0" not in label]
    (path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_site([path], tmp_path / "site")
    shown = [row[0] for row in names(tmp_path / "site")]
    assert shown == [*labels[:3], None, "x" * 199 + "…"]
    assert [page["source"] for page in features(tmp_path / "site")] == ["person", "person", "person", None, "person"]


def test_a_label_of_two_lines_is_refused_by_name_of_its_line(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", [feature()])
    (path / "labels.jsonl").write_text(json.dumps({"feature": 0, "label": "one\ntwo"}) + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .*labels\.jsonl: a label is one line"):
        write_site([path], tmp_path / "site")


def test_sentences_are_whole_distinct_and_of_a_length_to_read() -> None:
    said = Sentences()
    whole = [f"The file number {number} is opened before it is read." for number in range(200)]
    for number, sentence in enumerate(whole):
        text = f"the end of another one. {sentence}  {sentence} Short one. And a beginning that no end"
        said.look_at([placed(text, [(0, 3)], [1.0], begin=number + 5)])
    assert len(said.chosen) == 60 and set(said.chosen) < set(whole)
    few = Sentences()
    few.look_at([placed("a text of some words which has no end at all, nor a beginning", [(0, 1)], [1.0], begin=9)] * 3)
    assert few.chosen == ["a text of some words which has no end at all, nor a beginning"]
