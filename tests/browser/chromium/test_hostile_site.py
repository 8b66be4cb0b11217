"""What a store or an address says stays text: no code runs, nothing is asked for elsewhere, the page goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import ALL, LONG, SCRIPTS, UNBROKEN, VALUES
from made_site import context, feature, write_site
from playwright.sync_api import Page
from site_host import Answer
from watched_pages import Pages, until

SHOWN = "() => document.querySelector('main h1') && document.title !== 'Features'"
ROUTES = (
    "#/",
    "#/sae",
    "#/sae/1",
    "#/sae/search?q=e",
    "#/sae/search?like=1",
    "#/sae/try?text=evil&edits=set:1:2",
    "#/sae/2",
)
# Elements and attributes that only hostile data would make: the code of the site makes none of them.
MADE = """() => [...document.querySelectorAll("*")].flatMap((one) => [
  ...(one.matches("img, iframe, object, embed, base, style, audio, video") ? [one.outerHTML] : []),
  ...(one.tagName === "SCRIPT" && new URL(one.src).origin !== location.origin ? [one.outerHTML] : []),
  ...[...one.attributes].filter(({name}) => name.startsWith("on") || name === "srcdoc").map(() => one.outerHTML),
  ...["href", "src", "action", "formaction", "xlink:href"].map((name) => one.getAttribute(name)).filter((to) =>
    to && !/^https?:$/.test(new URL(to, location.href).protocol) && to !== "data:,"),
]).map((text) => text.slice(0, 200))"""


CLICKS = """() => { for (const one of document.querySelectorAll(
  "main button, main [role=tab], main summary, main [role=option], main .hot, main input[type=checkbox]"))
    if (one.isConnected && !one.disabled) one.click(); }"""


def hostile(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """A feature for each text, which has it wherever a feature has text."""
    return [
        feature(
            number,
            label=text,
            source=text,
            tokens=[[text, 5, 2.0], ["tea", 3, 1.0]],
            promoted=[[text, 1.5]],
            suppressed=[[text, -1.5]],
            contexts=[
                context(["a ", [text, 4.0], " b"], file=text, licence=text),
                context([text, [text, 1.0], text], band=1, row=None),
            ],
        )
        for number, text in enumerate(texts.values())
    ]


def hostile_overview(text: str) -> dict[str, Any]:
    starter = {"feature": 1, "label": text, "density": 0.01, "max": 4.0, "text": [text, [text, 4.0], text]}
    law = {"rank": [1, 2, 3, 4], "value": [0.3, 0.1, 0.02, 0.001], "what": text}
    told = {"name": text, "model": text, "hook": text, "allocation": text, "law": law, "licences": [text]}
    return told | {"texts": [{"file": text, "documents": 9}], "left_out": [text], "starters": [starter]}


def visit(page: Page, routes: tuple[str, ...] = ROUTES) -> None:
    """Go to each page and use all of its controls."""
    for route in routes:
        page.evaluate("(to) => { location.hash = to; }", route)
        until(page, SHOWN)
        page.wait_for_timeout(150)
        page.evaluate(CLICKS)
        page.keyboard.press("Tab")
        page.wait_for_timeout(50)
        assert page.evaluate(MADE) == [], route


@pytest.mark.parametrize("name", SCRIPTS)
def test_texts_of_a_store_run_no_code(open_page: Pages, tmp_path: Path, name: str) -> None:
    text = SCRIPTS[name]
    features = hostile({str(number): text for number in range(5)})
    described = {"hook": text, "model": text}
    site = write_site(
        tmp_path / "site", {"sae": features}, overviews=hostile_overview(text), described=described, title=text
    )
    page = open_page(site, downloads=True)
    visit(page)
    assert text.strip()[:12] in page.inner_text("body"), "and it is shown as text"


def test_odd_texts_are_shown_and_each_page_goes_on(open_page: Pages, tmp_path: Path) -> None:
    features = hostile(ALL)
    overview = hostile_overview("\u202e\u0000\ud800__proto__")
    page = open_page(
        write_site(tmp_path / "site", {"sae": features}, overviews=overview, title="\u202e\u0000\ud800"), downloads=True
    )
    visit(page, tuple(f"#/sae/{number}" for number in range(len(features))))
    for name in ("turned", "control"):
        page.evaluate("(to) => { location.hash = to; }", f"#/sae/{list(ALL).index(name)}")
        until(page, SHOWN)
        page.wait_for_timeout(100)
        shown = page.inner_text("main")
        assert not set(shown) & set("\u202e\u2066\u0000\u001b\u200f"), "marks that do not show are written out"


def test_searches_for_hostile_words(open_page: Pages, tmp_path: Path) -> None:
    page = open_page(write_site(tmp_path / "site", {"sae": hostile(ALL)}), "#/sae/search")
    until(page, SHOWN)
    for text in (
        *ALL.values(),
        ".*",
        "(",
        "\\",
        "[a-",
        "\U0001d4d0",
        "ﬁ",
        "İ",
        "ẞ",
        "-1",
        "1e3",
        "0x1",
        "99999999999999999999",
    ):
        page.evaluate(
            """(text) => { const box = document.getElementById("query"); box.value = text;
                 box.dispatchEvent(new Event("input", {bubbles: true})); }""",
            text,
        )
        page.wait_for_timeout(170)
        assert page.evaluate(MADE) == []
    page.fill("#query", "img src=x")
    until(page, "() => document.querySelectorAll('main a.feature').length === 1")


def test_long_texts_do_not_stop_the_page(open_page: Pages, tmp_path: Path) -> None:
    features = hostile({"long": LONG, "unbroken": UNBROKEN, "other": "short"})
    page = open_page(write_site(tmp_path / "site", {"sae": features}, overviews=hostile_overview(UNBROKEN)))
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for route in ("#/sae", "#/sae/0", "#/sae/1", "#/sae/search?q=W", "#/sae/2"):
            page.evaluate("(to) => { location.hash = to; }", route)
            until(page, SHOWN)
            page.wait_for_timeout(100)
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{route} scrolls sideways at {width} by {wide}"


FIELDS = [name for name in feature(0) if name != "feature"]


@pytest.mark.parametrize("value", VALUES)
def test_values_of_another_kind_are_a_sentence_or_shown(open_page: Pages, tmp_path: Path, value: str) -> None:
    features = [feature(number, **{field: VALUES[value]}) for number, field in enumerate(FIELDS)]
    features += [feature(len(FIELDS), contexts=[context(["a"]) | {field: VALUES[value]}]) for field in context([])]
    features = [row | {"feature": number} for number, row in enumerate(features)]
    page = open_page(write_site(tmp_path / "site", {"sae": features}), downloads=True)
    visit(page, tuple(f"#/sae/{number}" for number in range(len(features))))
    visit(page, ("#/sae/search?q=label", "#/sae/search?q=7&order=max", "#/sae/search?like=9"))


@pytest.mark.parametrize("value", VALUES)
def test_overview_of_other_kinds(open_page: Pages, tmp_path: Path, value: str) -> None:
    site = write_site(tmp_path / "site", {"sae": [feature(number) for number in range(3)]})
    path = site / "data" / "sae" / "overview.json"
    usual = json.loads(path.read_text())
    for field in usual:
        if field == "shards":
            continue
        path.write_text(json.dumps({**usual, field: VALUES[value]}))
        page = open_page(site)
        until(page, SHOWN)
        assert page.evaluate(MADE) == []
        assert open_page.violations(page) == [], field
        page.close()


ADDRESSES = [
    "#", "#/%00", "#/../../", "#//evil.example/", "#/sae/99999999", "#/sae/-1", "#/sae/1e3", "#/sae/0x1", "#/sae/NaN",
    "#/sae/1/2/3", "#/sae/%E0%A4%A", "#/%", "#/sae/search?q=%", "#/sae/search?q=%00%FF", "#/sae/search?like=99999999",
    "#/sae/search?like=-1", "#/sae/search?like=NaN", "#/sae/search?order=constructor&density=__proto__",
    "#/sae/search?density=NaN-1e999", "#/__proto__", "#/constructor/1", "#/toString", "#/sae/__proto__",
    "#/sae/try?edits=set:NaN:1e999", "#/sae/try?edits=set:99999999:1", "#/sae/try?edits=,,:::,set,set:1,ablate",
    "#/sae/try?edits=constructor:1:2,__proto__:1:1", "#/sae/try?edits=set:1:1@__proto__,set:1:1@%FF",
    "#/sae/try?text=%3Cscript%3Ewindow.pwned=1%3C/script%3E&edits=set:1:2",
    "#/sae/try?edits=" + ",".join(f"set:{number % 5}:{number}" for number in range(3000)),
    "#/sae/1?a=1&a=2#/sae/2", "#javascript:window.pwned=1", "#/<img src=x onerror=window.pwned=1>",
    "#/sae/<img src=x onerror=window.pwned=1>", "?a=<script>#/sae/1",
]  # fmt: skip


def test_addresses_of_strangers(open_page: Pages, tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", {"sae": [feature(number) for number in range(5)]})
    page = open_page(site)
    for address in ADDRESSES:
        page.goto("about:blank")
        page.goto(open_page.host(site).address + address)
        until(page, SHOWN)
        page.wait_for_timeout(60)
        assert page.evaluate(MADE) == [], address
        said = page.inner_text("main")
        assert "undefined" not in said and "TypeError" not in said, (address, said)
        assert open_page.violations(page) == [], address
        page.evaluate("location.hash = '#/sae/2'")
        until(page, "() => document.querySelector('main h1')?.textContent.startsWith('2')")


def test_address_of_a_megabyte(open_page: Pages, tmp_path: Path) -> None:
    page = open_page(write_site(tmp_path / "site", {"sae": [feature(number) for number in range(5)]}))
    for route in ("#/sae/try?text=", "#/sae/search?q=", "#/sae/search?text=", "#/sae/try?edits=", "#/"):
        page.evaluate("(to) => { location.hash = to; }", route + "evil%20" * 150_000)
        page.wait_for_timeout(300)
        page.evaluate("location.hash = '#/sae/3'")
        until(page, "() => document.querySelector('main h1')?.textContent.startsWith('3')")


@pytest.mark.parametrize(
    "served",
    [
        '{"api": "http://10.0.0.1/", "models": "http://10.0.0.1/models"}',
        '{"api": "//10.0.0.1/"}',
        '{"api": 7}',
        "[]",
        "null",
        "evil",
    ],
)
def test_answer_of_a_false_server_leaves_nothing(open_page: Pages, tmp_path: Path, served: str) -> None:
    site = write_site(tmp_path / "site", {"sae": [feature(number) for number in range(5)]})
    open_page.host(site).answers["serve.json"] = Answer(body=served.encode())
    page = open_page(
        site,
        downloads=True,
        expected=["policy: connect-src", "console: error: .*(violates|Refused to connect)", "left 127.0.0.1"],
    )
    visit(page, ("#/sae/try?text=secret&edits=set:1:2", "#/sae/1"))
    assert not [one for one in open_page.requests(page) if "secret" in one]
