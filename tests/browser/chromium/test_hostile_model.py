"""Hostile stores and models, written by the commands into a real site, and hostile servers: all they say stays text."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from deployed_model import deploy
from hostile_texts import ODD, SCRIPTS
from made_store import context, feature, token, write_store
from playwright.sync_api import Page
from site_host import Answer
from watched_pages import Pages, until

SHOWN = "() => document.querySelector('main h1') && document.title !== 'Features'"
MADE = (
    """() => document.querySelectorAll("img, iframe, object, embed, base, style, link[href^=http], [onerror]").length"""
)
EVIL = " ".join(SCRIPTS.values())
# Texts that UTF-8 can write, as every text of a store is; words without blanks, as a tokenizer here splits at them.
TEXTS = [text for text in (*SCRIPTS.values(), *ODD.values()) if text.strip() and not re.search("[\ud800-\udfff]", text)]
WORDS = [re.sub(r"\s+", "/", text) for text in TEXTS]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    folder, sae = tmp_path_factory.mktemp("hostile"), bundle_of("mutual")
    model = deploy(folder / "<b>model", "bert", {"bundle": sae})
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {_word(name): number for name, number in vocabulary.items()}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    weights = json.loads((sae / "sae_runtime.json").read_text())["files"]["sae_weights.safetensors"]["sha256"]
    rows = []
    for number in range(150):
        text, word = TEXTS[number % len(TEXTS)], WORDS[number % len(WORDS)]
        rows.append(
            feature(
                [context(f"before {word} after", word, 4.0, file=text, licence=text, id=text)],
                top_tokens=[token(text), token(word)],
                promoted=[{"token": 0, "text": text, "logit": 1.0}],
                suppressed=[{"token": 1, "text": text, "logit": -1.0}],
            )
        )
    store = write_store(folder / "store", rows, weights_sha256=weights, sae=EVIL, model=EVIL, hook=EVIL, licence=EVIL)
    done = run("browse", store, model, "-o", folder / "site", "-q", "--title", EVIL)
    assert done.exit_code == 0, done.stderr
    return folder / "site"


def _word(name: str) -> str:
    number = re.fullmatch(r"w(\d+)", name)
    return name if number is None or int(number[1]) >= len(WORDS) else WORDS[int(number[1])]


def name_of(site: Path) -> str:
    return str(json.loads((site / "site.json").read_text())["saes"][0]["name"])


def settle(page: Page, route: str) -> None:
    page.evaluate("(to) => { location.hash = to; }", route)
    until(page, SHOWN)
    page.wait_for_timeout(150)
    assert page.evaluate(MADE) == 0, route


def test_a_hostile_store_becomes_a_site_of_texts(open_page: Pages, site: Path) -> None:
    name = name_of(site)
    assert re.fullmatch(r"[\w.-]+", name), "the name of a folder is safe"
    page = open_page(site)
    for route in (f"#/{name}", *(f"#/{name}/{number}" for number in range(0, 150, 7)), f"#/{name}/search?q=script"):
        settle(page, route)
    settle(page, f"#/{name}/0")
    assert TEXTS[0] in page.inner_text("main")


def test_a_hostile_vocabulary_is_read_in_the_page(open_page: Pages, site: Path) -> None:
    page = open_page(site, f"#/{name_of(site)}/try")
    page.get_by_role("button", name="Load the model").click()
    until(page, "() => document.querySelector('.ready')", seconds=60)
    text = " ".join(WORDS)
    page.fill("#typed", text)
    shown = "[...document.querySelectorAll('.try-reading [role=option]')]"
    own = f"() => {shown}.some((one) => one.textContent.includes('pwned'))"
    until(page, own, seconds=60)  # the page has read a text of its own before
    page.locator(".strongest .steer").first.click()
    page.wait_for_timeout(1000)
    assert page.evaluate(MADE) == 0
    for program in ("Python", "curl", "openai"):
        page.get_by_role("tab", name=program).click()
        code = page.locator("pre.code").inner_text()
        assert "\u202e" not in code and "\u0000" not in code
        if program == "Python":
            values: dict[str, Any] = {}
            exec(next(line for line in code.splitlines() if line.startswith("text = ")), values)
            assert values["text"] == text, "the program has the very text"
        if program != "curl":
            compile(code, program, "exec")


SERVED = {"api": "/", "models": "/page/models"}
SAE = {"name": EVIL, "hook": EVIL, "d_sae": 150, "edits": True, "weights_sha256": "0" * 64}


def served_pages(kind: str) -> dict[str, Any]:
    """What a server of hostile texts answers."""
    active = [
        {"sae": EVIL, "feature": 3, "value": 2.0, "label": EVIL},
        {"sae": "__proto__", "feature": 4, "value": 1.0},
    ]
    tokens = [{"token": EVIL, "start": 0, "end": 3, "special": False, "features": active}]
    tokens += [{"token": EVIL, "start": 0, "end": 0, "special": True, "features": []}]
    model = {"name": EVIL, "version": EVIL, "kind": kind, "operations": ["features", "run"], "saes": [SAE]}
    lines = "".join(f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n" for text in TEXTS)
    return {
        "serve.json": SERVED,
        "page/models": {"models": [model, {**model, "name": "__proto__"}]},
        "v1/features": {"data": [{"tokens": tokens}]},
        "v1/embeddings": {"data": [{"embedding": [1.0, number]} for number in range(8)]},
        "v1/chat/completions": f"{lines}data: [DONE]\n\n",
    }


@pytest.mark.parametrize("kind", ["vectors", "text", "other", EVIL])
def test_hostile_answers_of_a_server_stay_text(open_page: Pages, site: Path, kind: str) -> None:
    answers = open_page.host(site).answers
    for path, value in served_pages(kind).items():
        answers[path] = Answer(body=(value if isinstance(value, str) else json.dumps(value)).encode())
    page = open_page(site, f"#/{name_of(site)}/try?text=some+text&edits=set:3:4")
    page.get_by_role("button", name="Use the server").click()
    page.wait_for_timeout(700)
    for button in page.locator("main button:visible:enabled").all()[:25]:
        if button.is_visible() and button.is_enabled():
            button.click(timeout=2000)
    page.wait_for_timeout(500)
    assert page.evaluate(MADE) == 0


BROKEN = {
    "null": b"null",
    "number": b"7",
    "empty": b"",
    "page": b"<!doctype html><h1>Bad gateway",
    "nothing": b"{}",
    "data of nothing": b'{"data": [], "models": []}',
    "data of null": b'{"data": [null], "models": [null]}',
    "texts for numbers": b'{"data": [{"embedding": "x", "tokens": [{"start": "a"}]}], "models": [{"name": 7}]}',
}


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("body", BROKEN)
@pytest.mark.parametrize("path", ["page/models", "v1/features", "v1/embeddings"])
def test_broken_answers_of_a_server_are_sentences(
    open_page: Pages, site: Path, path: str, body: str, status: int
) -> None:
    answers = open_page.host(site).answers
    for each, value in served_pages("vectors").items():
        answers[each] = Answer(body=(value if isinstance(value, str) else json.dumps(value)).encode())
    known = json.loads((site / "site.json").read_text())["saes"][0]
    fitting = {"models": [{"name": "m", "version": "1", "kind": "vectors", "operations": ["features"], "saes": [
        {**SAE, "name": "sae", "weights_sha256": known["weights_sha256"]}]}]}  # fmt: skip
    answers["page/models"] = Answer(body=json.dumps(fitting).encode())
    answers[path] = Answer(body=BROKEN[body], status=status)
    refused = ["status: 500", "console: error: Failed to load resource"] if status == 500 else []
    page = open_page(site, f"#/{name_of(site)}/try?text=some+text&edits=set:3:4", expected=refused)
    page.get_by_role("button", name="Use the server").click()
    until(page, "() => [...document.querySelectorAll('main .error')].some((one) => one.textContent.trim())", seconds=5)
    said = page.evaluate("[...document.querySelectorAll('main .error')].map((one) => one.textContent).join(' ').trim()")
    assert "does not have this SAE" not in said, "the fault is met"
    assert not re.search("undefined|TypeError|is not|Cannot read|NaN|Unexpected", said), said
