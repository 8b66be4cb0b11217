"""A person's way through a whole site in Chromium, and what the model in the page says beside Python's `Model`."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, expect
from site_host import Answer
from watched_pages import Pages, until
from whole_site import NAMES, Whole, make_whole_site, texts

from sae_runtime import Edit, Model, load_model

# WebAssembly adds up float32 products in another order. FEATURE is a share of a token's largest activation; a feature
# whose pre-activation is that near to its threshold may be active in one alone.
FEATURE, COSINE = 1e-3, 1e-4
TITLE = "(title) => document.title.startsWith(title)"
SESSION = "import(new URL('code/try/session.js', location.href.split('#')[0]).href)"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return make_whole_site(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def model(whole: Whole) -> Model:
    return load_model(whole.model, threads=1)


def stored(whole: Whole, sae: str, feature: int) -> dict[str, Any]:
    """What the files of the site say of a feature."""
    folder = whole.site / "data" / sae
    firsts = json.loads((folder / "overview.json").read_text())["shards"]["features"]
    shard = max(number for number, first in enumerate(firsts) if first <= feature)
    content = json.loads((folder / "features" / f"{shard:05}.json").read_text())
    found: dict[str, Any] = content["features"][feature - content["first"]]
    return found


def number_of(page: Page) -> int:
    return int(page.evaluate("location.hash.split('/')[2]"))


def test_from_the_overview_to_a_feature_and_on_by_keys(open_page: Pages, whole: Whole) -> None:
    page = open_page(whole.site)
    until(page, "() => document.querySelector('main').textContent.includes('800')")
    said = page.inner_text("main")
    assert "800" in said and "PSF-2.0" in said and "docs.jsonl" in said
    page.select_option("#sae", "late")
    until(page, "location.hash === '#/late'")
    until(page, "() => document.querySelector('main').textContent.includes('1,536')")
    page.fill("#query", "7")
    page.keyboard.press("Enter")
    until(page, "location.hash === '#/late/7'")
    until(page, TITLE, "7")
    page.locator("main h1").click()
    for key, feature in (("n", 8), ("ArrowRight", 9), ("p", 8), ("ArrowLeft", 7), ("p", 6)):
        page.keyboard.press(key)
        until(page, TITLE, str(feature))
        assert number_of(page) == feature
    page.go_back()
    until(page, TITLE, "7")
    page.reload()
    until(page, TITLE, "7")
    page.keyboard.press("r")
    until(page, "!location.hash.endsWith('/7')")
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.press("?")
    assert page.input_value("#query").endswith("?"), "keys rest while somebody types"


def test_feature_page_shows_what_the_store_has(open_page: Pages, whole: Whole) -> None:
    overview = json.loads((whole.site / "data" / "late" / "overview.json").read_text())
    feature = overview["starters"][0]["feature"]
    about = stored(whole, "late", feature)
    page = open_page(whole.site, f"#/late/{feature}")
    until(page, TITLE, str(feature))
    said = re.sub(r"\s+", " ", page.inner_text("main"))
    assert f"{about['count']:,}" in said and "Labelled by a person" not in said
    strongest = about["contexts"][0]
    word = strongest["parts"][strongest["peak"]][0].strip()
    peak = page.locator("main .peak").first
    assert peak.inner_text().strip() == word
    peak.hover()
    bubble = page.locator("#bubble").inner_text()
    assert float(bubble.split()[0].replace(",", "")) == pytest.approx(strongest["value"], rel=5e-3)
    for place, (other, cosine) in enumerate(about["neighbours"][:3]):
        assert str(other) in said and f"{cosine:.2f}"[:-1] in said, place
    for program in ("Python", "curl", "openai"):
        page.get_by_role("tab", name=program).click()
        code = page.locator("pre.code").inner_text()
        assert str(feature) in code
        if program != "curl":
            compile(code, program, "exec")


def test_search_by_token_and_number(open_page: Pages, whole: Whole) -> None:
    names = json.loads((whole.site / "data" / "early" / "names" / "0000.json").read_text())
    token = next(tokens[0] for tokens in names["tokens"] if tokens and re.fullmatch(r"[a-z]{5,}", tokens[0]))
    having = {n for n, tokens in enumerate(names["tokens"]) if any(token in text.lower() for text in tokens)}
    page = open_page(whole.site, "#/early/search")
    until(page, TITLE, "Search")
    page.fill("#query", token)
    until(
        page,
        "(token) => document.querySelector('main [role=status]').textContent.includes(`“${token}”`)",
        token,
    )
    links = page.locator("main a.feature")
    found = {int(re.match(r"\d+", links.nth(n).inner_text()).group()) for n in range(links.count())}  # type: ignore[union-attr]
    assert found and found <= having and (found == having or len(found) == 50)
    page.fill("#query", "799")
    page.keyboard.press("Enter")
    until(page, "location.hash === '#/early/799'")


def loaded(open_page: Pages, whole: Whole, route: str) -> Page:
    page = open_page(whole.site, route)
    before = [one for one in open_page.requests(page) if "/model/" in one]
    assert all(one.endswith("model.json") for one in before), "the model is loaded on demand"
    page.get_by_role("button", name="Load the model").click()
    until(page, "() => document.querySelector('.ready')", seconds=120)
    return page


def features_in_page(page: Page, text: str) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        f"(text) => {SESSION}.then(({{session}}) => session.model.features(text))", text
    )
    return found


def dense(token: dict[str, Any], sae: str) -> NDArray[np.float32]:
    values = np.zeros(NAMES[sae][1], np.float32)
    for feature, value in token["saes"][sae]:
        values[feature] = value
    return values


ODD = (
    "Tokenisierung naïve ﬁle 中文 👍🏽! …",
    "x",
    "  two  blanks\n\nand lines\t",
    "UPPER lower 12345 3.14 <b>&amp;</b>",
    "e\u0301 = é ＡＢＣ",
)


def test_features_of_texts_equal_those_of_python(open_page: Pages, whole: Whole, model: Model) -> None:
    page = loaded(open_page, whole, "#/late/try?text=Open+the+file")
    pairs = flips = 0
    for text in (*texts()[::12], *ODD):
        found, expected = features_in_page(page, text), model.features(text)
        assert [token["text"] for token in found["tokens"] if not token["special"]] == [
            text[begin:end] for (begin, end) in expected.offsets.tolist() if end > begin
        ]
        assert (
            "".join(token["gap"] + token["text"] for token in found["tokens"] if not token["special"]) == text.rstrip()
        )
        for sae in NAMES:
            there = expected.saes[sae].to_dense()
            here = np.stack([dense(token, sae) for token in found["tokens"]])
            largest = there.max(axis=1, keepdims=True)
            both = (here > 0) & (there > 0)
            assert np.abs(here - there)[both].max(initial=0) <= (FEATURE * largest).max()
            alone = (here > 0) != (there > 0)
            pairs, flips = pairs + int(both.sum()), flips + int(alone.sum())
    assert pairs > 10_000 and flips <= pairs / 10_000, (pairs, flips)


def test_the_page_shows_the_strongest_features_of_the_text(open_page: Pages, whole: Whole, model: Model) -> None:
    page = loaded(open_page, whole, "#/late/try")
    text = "Return a new list of files that the parser could not read."
    page.fill("#typed", text)
    line = page.locator(".try-reading [role=option]")
    expect(line).to_have_count(len(model.features(text).tokens))
    line.nth(5).click()
    own = model.features(text).saes["late"]
    numbers, values = own.row(5)
    order = np.argsort(-values)[:5]
    rows = page.locator(".strongest li .what a")
    assert [int(re.match(r"\d+", rows.nth(n).inner_text()).group()) for n in range(5)] == numbers[order].tolist()  # type: ignore[union-attr]
    shown = page.locator(".strongest li .value")
    assert [float(shown.nth(n).inner_text()) for n in range(5)] == pytest.approx(values[order].tolist(), rel=6e-3)


def cosines(vector: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    near: NDArray[np.float32] = others @ vector / np.linalg.norm(others, axis=1) / np.linalg.norm(vector)
    return near


def shown_ranks(page: Page, place: int) -> list[str]:
    found: list[str] = page.evaluate(
        "(place) => [...document.querySelectorAll('ol.ranks')][place]?.querySelectorAll('.text') ? "
        "[...[...document.querySelectorAll('ol.ranks')][place].querySelectorAll('.text')].map((one) => one.title) : []",
        place,
    )
    return found


def assert_same_neighbours(shown: Sequence[str], near: NDArray[np.float32], sentences: Sequence[str]) -> None:
    """The shown texts are the ten nearest; those whose cosines differ by less than COSINE may have changed places."""
    order = np.argsort(-near, kind="stable")
    places = [sentences.index(text) for text in shown]
    assert len(places) == len(set(places)) == 10
    assert np.abs(near[places] - near[order[:10]]).max() <= 2 * COSINE, "a gap beyond the tolerance"


def test_an_edit_gives_the_neighbours_of_python(open_page: Pages, whole: Whole, model: Model) -> None:
    text = "Return a new list of files that the parser could not read."
    features = model.features(text)
    late = features.saes["late"]
    strongest = int(late.indices[np.argmax(late.values)])
    early = features.saes["early"]
    second = int(early.indices[np.argmax(early.values)])
    route = f"#/late/try?edits=set:{strongest}:30,scale:{second}:3@early"
    page = loaded(open_page, whole, route)
    page.fill("#typed", text)
    until(page, "() => document.querySelectorAll('ol.ranks').length === 2")
    page.wait_for_timeout(1500)  # the last of the runs that typing asked for
    told = json.loads((whole.site / "model" / "model.json").read_text())["sentences"]
    sentences = [re.sub(r"\s+", " ", one).strip() for one in told]
    others = model.embed(sentences)
    edits = {"late": [Edit.set(strongest, 30.0)], "early": [Edit.scale(second, 3.0)]}
    before, after = model.embed(text), model.embed(text, edits)
    assert before @ after < 0.99, "the edit moves the text"
    assert_same_neighbours(shown_ranks(page, 0), cosines(before, others), sentences)
    assert_same_neighbours(shown_ranks(page, 1), cosines(after, others), sentences)
    asked = [{"sae": "late", "feature": strongest, "kind": "set", "value": 30}]
    asked += [{"sae": "early", "feature": second, "kind": "scale", "value": 3}]
    vector = page.evaluate(
        f"([text, edits]) => {SESSION}.then((one) => one.session.model.embed([text], edits)).then(([one]) => [...one])",
        [text, asked],
    )
    assert np.abs(np.array(vector) - after).max() <= COSINE


def test_the_address_keeps_text_and_edits_and_features_are_found_by_text(open_page: Pages, whole: Whole) -> None:
    page = loaded(open_page, whole, "#/early/try?text=Open+the+file&edits=set:3:5")
    expect(page.locator("#typed")).to_have_value("Open the file")
    page.fill("#add-feature", "11")
    page.keyboard.press("Enter")
    until(page, "() => document.querySelectorAll('.edits li').length === 2")
    until(page, "decodeURIComponent(location.hash).includes('set:3:5,set:11:')")
    hash_ = page.evaluate("location.hash")
    page.reload()
    until(page, "() => document.querySelectorAll('.edits li').length === 2")
    assert page.evaluate("location.hash") == hash_
    page.evaluate("location.hash = '#/early/search?text=Open+the+file'")
    page.click(".load")
    until(page, "() => document.querySelectorAll('main a.feature').length > 3", seconds=120)


def test_a_truncated_or_missing_model_is_a_sentence(open_page: Pages, whole: Whole) -> None:
    big = next(path.name for path in sorted((whole.site / "model").glob("weights.*")))
    faults = {
        "graph": ("model/model.onnx", Answer(body=(whole.site / "model" / "model.onnx").read_bytes()[:5000])),
        "weights": (f"model/{big}", Answer(body=b"\0" * 1000)),
        "cut": (f"model/{big}", Answer(cut=100_000)),
        "missing": (f"model/{big}", Answer(status=404, body=b"no")),
        "tokenizer": ("model/tokenizer.json", Answer(body=b'{"model": {"type": "WordPiece"')),
        "no tokenizer": ("model/tokenizer.json", Answer(body=b"{}")),
        "page": ("model/model.onnx", Answer(body=b"<!doctype html>", type="text/html")),
        "wasm": ("vendor/ort-wasm-simd-threaded.wasm", Answer(status=404, body=b"no")),
    }
    for name, (path, answer) in faults.items():
        host = open_page.host(whole.site)
        host.answers.clear()
        host.answers[path] = answer
        expected = ["status: 404", "Failed to load resource"]
        expected += [r"onnxruntime-web\.js"] if name == "wasm" else []  # the library itself writes to the console
        page = open_page(whole.site, "#/late/try?text=a", expected=expected)
        page.get_by_role("button", name="Load the model").click()
        said = until(page, "() => document.querySelector('.load-box .error')?.textContent", seconds=60)
        assert path.rpartition("/")[2] in said or (name == "wasm" and "wasm" in said), (name, said)
        assert open_page.violations(page) == [], name
        page.close()


def test_model_description_of_another_kind_is_a_sentence(open_page: Pages, whole: Whole) -> None:
    host = open_page.host(whole.site)
    for body in (b"null", b"{}", b"[]", b"7", b"{", b"<html>", b'{"saes": 7, "kind": "vectors", "external": "x"}'):
        host.answers["model/model.json"] = Answer(body=body)
        page = open_page(whole.site, "#/late/try?text=a")
        until(page, "() => document.querySelector('main h1')")
        page.wait_for_timeout(300)
        if page.get_by_role("button", name="Load the model").count():
            page.get_by_role("button", name="Load the model").click()
        said = until(
            page, "() => document.querySelector('main .error:not(:empty), main [role=alert]:not(:empty)')?.textContent"
        )
        assert "undefined" not in said and "TypeError" not in said, (body, said)
        assert open_page.violations(page) == [], body
        page.close()


def test_a_model_elsewhere_is_not_asked_for(open_page: Pages, whole: Whole) -> None:
    told = json.loads((whole.site / "model" / "model.json").read_text())
    for field, value in (
        ("graph", "http://10.0.0.1/model.onnx"),
        ("graph", "//10.0.0.1/x"),
        ("tokenizer", "../../secret.json"),
    ):
        open_page.host(whole.site).answers["model/model.json"] = Answer(
            body=json.dumps({**told, field: value}).encode()
        )
        page = open_page(whole.site, "#/late/try?text=a", prefix="/")
        page.get_by_role("button", name="Load the model").click()
        assert until(page, "() => document.querySelector('.load-box .error')?.textContent", seconds=60)
        assert not [one for one in open_page.requests(page) if "secret" in one or "10.0.0.1" in one]
        page.close()


def test_no_page_of_the_site_asks_another_host_or_writes_to_the_console(open_page: Pages, whole: Whole) -> None:
    page = loaded(open_page, whole, "#/late/try?text=Open+the+file&edits=set:3:9")
    for route in ("#/", "#/late", "#/early/5", "#/late/search?q=the", "#/late/search?like=5", "#/early/try"):
        page.evaluate("(to) => { location.hash = to; }", route)
        page.wait_for_timeout(500)
    hosts = {re.match(r"https?://[^/]*", one).group() for one in open_page.requests(page) if one.startswith("http")}  # type: ignore[union-attr]
    assert len(hosts) == 1
