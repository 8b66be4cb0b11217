"""The site at /site/ of a server: its page reads and steers by the models there, with a key where one is asked for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_model import D_SAE, deploy
from made_site import feature, write_site
from running import running
from watched_pages import Pages, until

from sae_runtime import Edit, Model, load_model
from sae_runtime.bundle.parts import WEIGHTS, read_manifest
from sae_runtime.serve.http.site_files import check_site
from sae_runtime.serve.plane import Plane

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sae_runtime.deployed.notices.AssumedPoolingWarning"),
]
KEY = "key-of-the-tests-of-32-characters"
TEXT, LINES = "w1 w2 w3", [f"w{i} w{i + 3} w{2 * i}" for i in range(12)]
AFTER = ".neighbours .pair > div:nth-child(2)"
REFUSED = ["status: 401", "console: error: Failed to load resource"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle_of: Callable[..., Path]) -> Path:
    made, bundle = tmp_path_factory.mktemp("served"), bundle_of("mutual", D_SAE, 4)
    deploy(made / "reader", "bert", {"bundle": bundle})
    writer = deploy(made / "writer", "gpt2", {"bundle": bundle})
    (writer / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }} {% endfor %}w1")
    weights = read_manifest(bundle).files[WEIGHTS].sha256
    rows = [feature(number) for number in range(D_SAE)]
    write_site(made / "site", {"mine": rows}, described={"weights_sha256": weights})
    return made


@pytest.fixture(scope="module")
def plane_of(folder: Path) -> Callable[..., Any]:
    def give(*names: str, **options: Any) -> Any:
        plane = Plane.open([f"{name}={folder / name}" for name in names])
        return running(plane, site=check_site(folder / "site"), **options)

    return give


@pytest.fixture(scope="module")
def address(plane_of: Callable[..., Any]) -> Iterator[str]:
    with plane_of("reader", "writer") as given:
        yield given


def model_of(folder: Path, name: str) -> Model:
    return load_model(folder / name, threads=1)


def nearest(model: Model, text: str, edits: list[Edit]) -> list[str]:
    vectors, vector = model.embed(LINES), model.embed(text, edits)
    near = vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)
    assert np.diff(np.sort(near)).min() > 1e-5, "no two are so near that rounding could turn them"
    return [LINES[place] for place in np.argsort(-near)][:10]


def test_vectors_of_the_server(open_page: Pages, address: str, folder: Path) -> None:
    page = open_page(f"{address}/site/", f"#/mine/try?text={TEXT.replace(' ', '%20')}&edits=set:3:60,ablate:7")
    page.wait_for_selector(".strongest .steer")
    assert "reader answers at 127.0.0.1" in page.inner_text(".load-box")
    page.click(".neighbours summary")
    page.fill("#sentences", "\n".join(LINES))
    page.wait_for_selector(f"{AFTER} .ranks li:nth-child(10)")
    columns = [page.locator(f".neighbours .pair > div:nth-child({n}) .ranks .text").all_inner_texts() for n in (1, 2)]
    model = model_of(folder, "reader")
    assert columns == [nearest(model, TEXT, []), nearest(model, TEXT, [Edit.set(3, 60.0), Edit.ablate(7)])]
    assert columns[0] != columns[1]
    assert page.locator(".tokens [role=option]").all_inner_texts() == ["[CLS]", *TEXT.split(), "[SEP]"]
    rows = page.locator(".strongest .list li:not(.more)").all_inner_texts()
    shown = {int(row.split()[0]): float(row.split("\n")[-3]) for row in rows}
    largest = model.features(TEXT).pooled("max")
    assert list(shown) == list(np.argsort(-largest)[: len(shown)])
    np.testing.assert_allclose(list(shown.values()), largest[list(shown)], rtol=6e-3)  # three digits are shown


def test_answers_of_the_server(open_page: Pages, address: str, folder: Path) -> None:
    page = open_page(f"{address}/site/", "#/mine/try?text=w5%20w6&edits=set:3:60")
    page.wait_for_selector("select.served")
    page.select_option("select.served", "writer")
    page.wait_for_selector(".answers")
    page.fill("#answer-tokens", "12")
    page.click(".write")
    until(
        page,
        "() => [...document.querySelectorAll('.answers .note')].every((one) => /^12 tokens/.test(one.textContent))",
    )
    model, question = model_of(folder, "writer"), [{"role": "user", "content": "w5 w6"}]
    for number, edits in enumerate(([], [Edit.set(3, 60.0)])):
        answer = model.generate(question, edits, max_new_tokens=12)
        list(answer)
        assert page.locator(".answers .answer").nth(number).inner_text().strip() == answer.text.strip()
    assert page.locator(".answers .answer").nth(0).inner_text() != page.locator(".answers .answer").nth(1).inner_text()


def test_what_fires_on_a_text(open_page: Pages, address: str, folder: Path) -> None:
    page = open_page(f"{address}/site/", f"#/mine/search?text={TEXT.replace(' ', '%20')}")
    until(page, "() => document.querySelectorAll('table.features tbody tr').length > 3")
    largest = model_of(folder, "reader").features(TEXT).pooled("max")
    first = page.inner_text("table.features tbody tr:first-child")
    assert first.split()[0] == str(largest.argmax())


def test_key_is_asked_for_and_kept_nowhere(open_page: Pages, plane_of: Callable[..., Any]) -> None:
    with plane_of("reader", keys=[KEY.encode()]) as address:
        page = open_page(f"{address}/site/", "#/mine/try?text=w1%20w2", expected=REFUSED)
        page.wait_for_selector("#api-key")
        assert "This server asks for a key." in page.inner_text(".load-box")
        page.fill("#api-key", "wrong")
        page.keyboard.press("Enter")
        until(page, "() => document.querySelector('.load-box').textContent.includes('does not know this key')")
        page.fill("#api-key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".strongest .steer")
        page.get_by_role("tab", name="curl").click()
        assert "$KEY" in page.inner_text(".programs pre") and f"{address}/v1/embeddings" in page.inner_text(
            ".programs pre"
        )
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert KEY not in kept and KEY not in page.content()


def test_page_of_the_server_leads_to_the_site(open_page: Pages, address: str) -> None:
    page = open_page(f"{address}/")
    page.get_by_role("link", name="Browse").or_(page.locator("#site a, a#site")).first.click()
    page.wait_for_selector("main .overview")
    assert page.url.startswith(f"{address}/site/")


def test_features_that_a_server_leaves_out_are_told(open_page: Pages, address: str) -> None:
    """It gives at most 100 of a token, and a feature that is not among them need not be inactive."""
    page = open_page(f"{address}/site/")
    script = """async (count) => {
        const { ServedModel } = await import("/site/code/try/served_model.js");
        const features = Array.from({ length: count }, (_, n) => ({ sae: "sae", feature: n, value: 200 - n }));
        const tokens = [{ token: "w1", start: 0, end: 2, special: false, features }];
        const told = { name: "m", latest: true, kind: "vectors", saes: [{ name: "sae", d_sae: 150, edits: true }] };
        const model = new ServedModel({ json: async () => ({ data: [{ tokens }] }) }, told, { saes: [] }, []);
        return (await model.features("w1")).most;
    }"""
    assert [page.evaluate(script, count) for count in (99, 100)] == [None, 100]


def test_tokens_of_a_server_make_the_text(open_page: Pages, address: str) -> None:
    """Several tokens are the bytes of one character, and a special token stands in the text."""
    page = open_page(f"{address}/site/")
    places = [(0, 0, True), (0, 1, False), (1, 2, False), (1, 2, False), (2, 4, False), (5, 10, True), (0, 0, True)]
    tokens = [{"token": "?", "start": a, "end": b, "special": s, "features": []} for a, b, s in places]
    script = """async ([text, tokens]) => {
        const { ServedModel } = await import("/site/code/try/served_model.js");
        const told = { name: "m", latest: true, kind: "vectors", saes: [] };
        return new ServedModel({ json: async () => ({ data: [{ tokens }] }) }, told, { saes: [] }, []).features(text);
    }"""
    seen = page.evaluate(script, ["a🙂 b [SEP] end", tokens])
    assert [one["text"] for one in seen["tokens"]] == ["?", "a", "🙂", "", " b", "[SEP]", "?"]
    assert "".join(one["gap"] + one["text"] for one in seen["tokens"][1:-1]) + seen["rest"] == "a🙂 b [SEP] end"
