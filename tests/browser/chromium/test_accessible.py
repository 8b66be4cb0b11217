"""Each page can be used by keyboard, by a screen reader, on a phone, and by weak eyes, in light and in dark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_site import context, feature, write_site
from playwright.sync_api import Page
from watched_pages import Pages, until

ROUTES = (
    "#/sae",
    "#/sae/1",
    "#/sae/search?q=label",
    "#/sae/search?like=1",
    "#/sae/try?text=some+text&edits=set:1:2,scale:2:3",
)
SHOWN = "() => document.querySelector('main h1') && document.title !== 'Features'"
# Elements that are shown, and the name that a screen reader says: of a label, or of the element's own text.
NAMES = """() => {
  const shown = (one) => one.checkVisibility({ visibilityProperty: true }) && one.getClientRects().length;
  const told = (ids) => ids.split(/\\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" ");
  const nameOf = (one) => one.getAttribute("aria-labelledby") ? told(one.getAttribute("aria-labelledby"))
    : one.getAttribute("aria-label") ?? (one.labels?.length ? [...one.labels].map((label) => label.textContent).join(" ")
    : one.matches("input, select, textarea, progress") ? one.title : one.textContent || one.title);
  const needs = "a[href], button, input, select, textarea, summary, progress, [role=tab], [role=option], [role=listbox]," +
    "[role=slider], [role=img], [role=tablist], [role=tabpanel], dialog[open], nav, svg[tabindex], section[aria-labelledby]";
  return [...document.querySelectorAll(needs)].filter(shown).filter((one) => !nameOf(one).trim()).map((one) => one.outerHTML.slice(0, 150));
}"""
STRUCTURE = """() => {
  const wrong = [], shown = (one) => one.checkVisibility();
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(shown).map((one) => Number(one.tagName[1]));
  if (levels.filter((one) => one === 1).length !== 1) wrong.push(`${levels.filter((one) => one === 1).length} h1`);
  levels.forEach((level, place) => { if (place && level > levels[place - 1] + 1) wrong.push(`h${levels[place - 1]} then h${level}`); });
  if (document.querySelectorAll("main").length !== 1) wrong.push("main");
  if (document.documentElement.lang !== "en") wrong.push("lang");
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  wrong.push(...ids.filter((id, place) => ids.indexOf(id) !== place).map((id) => `two ids ${id}`));
  for (const one of document.querySelectorAll("[aria-labelledby], [aria-controls], label[for]"))
    for (const id of (one.getAttribute("aria-labelledby") ?? one.getAttribute("aria-controls") ?? one.htmlFor).split(/\\s+/))
      if (one.checkVisibility() && !document.getElementById(id)) wrong.push(`no element ${id} for ${one.outerHTML.slice(0, 100)}`);
  const parents = { tab: "tablist", option: "listbox" };
  for (const [role, parent] of Object.entries(parents))
    for (const one of document.querySelectorAll(`[role=${role}]`)) if (!one.closest(`[role=${parent}]`)) wrong.push(`${role} outside of ${parent}`);
  for (const one of document.querySelectorAll("ul, ol")) for (const child of one.children) if (child.tagName !== "LI") wrong.push(`${child.tagName} in a list`);
  for (const table of document.querySelectorAll("table")) if (!table.querySelector("th")) wrong.push("a table without th");
  return wrong;
}"""
# Text whose contrast with what is behind it is below 4.5 to 1, or 3 to 1 where it is large. Colours are painted on a
# canvas, which turns every way of writing them into bytes; half transparent layers are put on those behind them.
CONTRAST = """() => {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const bytes = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((one, i) => one * a + under[i] * (1 - a));
  const light = (rgb) => rgb.map((one) => one / 255).map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    const layers = [];
    for (let each = one; each; each = each.parentElement) layers.push(bytes(getComputedStyle(each).backgroundColor));
    const page = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    return layers.reverse().reduce((under, layer) => over(layer, under), page);
  };
  const wrong = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const one = node.parentElement;
    if (!node.data.trim() || !one.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || one.closest("[disabled], svg")) continue;
    const box = one.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1) continue;
    const style = getComputedStyle(one), back = behind(one);
    let opacity = 1;
    for (let each = one; each; each = each.parentElement) opacity *= Number(getComputedStyle(each).opacity);
    const [r, g, b, a] = bytes(style.color), ink = over([r, g, b, a * opacity], back);
    const [high, low] = [light(ink), light(back)].sort((x, y) => y - x), ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.set(`${one.tagName}.${one.className}`, `${ratio.toFixed(2)} ${node.data.trim().slice(0, 40)}`);
  }
  return [...wrong];
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts: list[Any] = ["words before ", ["strong", 4.0], " and ", ["weak", 0.2], " and ", ["half", 2.0]]
    rows = [feature(number, contexts=[context(parts), context(parts, band=1, value=1.0)] * 4) for number in range(60)]
    rows[3] |= {"label": None, "source": "top tokens"}
    rows[4] |= {
        "count": 0,
        "density": 0,
        "max": 0,
        "mean": 0,
        "contexts": [],
        "tokens": [],
        "bands": [],
        "histogram": [0] * 4,
    }
    return write_site(tmp_path_factory.mktemp("site") / "site", {"sae": rows, "other": rows[:5]})


def opened(open_page: Pages, site: Path, route: str, **more: Any) -> Page:
    page = open_page(site, route, **more)
    until(page, SHOWN)
    page.wait_for_timeout(300)
    return page


@pytest.mark.parametrize("route", (*ROUTES, "#/sae/3", "#/sae/4", "#/nothing"))
def test_names_and_structure(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route)
    assert page.evaluate(NAMES) == []
    assert page.evaluate(STRUCTURE) == []
    page.keyboard.press("?")
    assert page.evaluate(NAMES) == [] and page.evaluate("document.querySelector('dialog').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('dialog').open")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("route", (*ROUTES, "#/nothing"))
def test_contrast_of_text(open_page: Pages, site: Path, route: str, dark: bool) -> None:
    page = opened(open_page, site, route, dark=dark)
    assert page.evaluate(CONTRAST) == []


def test_weak_contrast_is_seen(open_page: Pages, site: Path) -> None:
    page = opened(open_page, site, "#/sae/1")
    page.evaluate("document.querySelector('h1').style.setProperty('color', 'rgb(200 200 200 / 90%)')")
    assert len(page.evaluate(CONTRAST)) >= 1
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert page.evaluate(NAMES) == ["<button></button>"]
    page.evaluate("document.querySelector('main').append(document.createElement('h1'))")
    assert page.evaluate(STRUCTURE) == ["2 h1"]


def stops(page: Page, most: int = 400) -> list[str]:
    """Where Tab goes from the top of the page, once around; each place must show that it has the focus."""
    page.evaluate("() => { document.activeElement?.blur(); scrollTo(0, 0); getSelection().removeAllRanges(); }")
    page.evaluate(
        """() => { let next = 0; for (const one of document.querySelectorAll("*")) {
             const style = getComputedStyle(one);
             one.calm = [style.outline, style.boxShadow, style.borderColor, style.backgroundColor, style.textDecoration].join();
             one.place = next++; } }"""
    )
    seen: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        page.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")  # it scrolls there
        told = page.evaluate(
            """() => { const one = document.activeElement;
                 if (!one || one === document.body) return null;
                 const style = getComputedStyle(one), box = one.getBoundingClientRect();
                 const now = [style.outline, style.boxShadow, style.borderColor, style.backgroundColor, style.textDecoration].join();
                 return { place: one.place, what: `${one.tagName} ${one.textContent.trim().slice(0, 30)}`, changed: now !== one.calm,
                   inside: box.bottom > 0 && box.top < innerHeight && box.width > 0 }; }"""
        )
        if told is None or (seen and f"{told['place']} " in [one.split(" ")[0] + " " for one in seen]):
            break
        assert told["changed"], f"the focus does not show on {told['what']}"
        assert told["inside"], f"the focus is outside of the window on {told['what']}"
        seen.append(f"{told['place']} {told['what']}")
    return seen


@pytest.mark.parametrize("route", ROUTES)
def test_tab_reaches_all_and_the_focus_shows(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route, reduced_motion="reduce")  # it scrolls to the focus at once
    found = {int(one.split(" ")[0]) for one in stops(page)}
    # Of tabs, tokens and options one is in the order of Tab; arrows go on from it.
    missed: Sequence[str] = page.evaluate(
        """(found) => [...document.querySelectorAll("a[href], button, input, select, textarea, summary")]
             .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.disabled && one.tabIndex >= 0
               && !(one.type === "radio") && !found.includes(one.place)).map((one) => one.outerHTML.slice(0, 120))""",
        sorted(found),
    )
    assert list(missed) == []


@pytest.mark.parametrize("route", ROUTES)
def test_phone(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route, width=390, height=800, has_touch=True, is_mobile=True)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"it scrolls sideways by {wide}"
    small = page.evaluate(
        """() => [...document.querySelectorAll("main button, main select, header button, header a, header select, input")]
             .filter((one) => one.checkVisibility()).map((one) => one.closest("label") ?? one).map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
             .filter(([, box]) => box.width && (box.height < 24 || box.width < 24)).map(([html, box]) => `${html} ${box.width} x ${box.height}`)"""
    )
    assert small == [], "WCAG 2.5.8 asks for targets of 24 by 24 pixels"
    tiny = page.evaluate(
        """() => [...document.querySelectorAll("main *, header *")].filter((one) => one.checkVisibility() && !one.closest("svg") && parseFloat(getComputedStyle(one).fontSize) < 11
             && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert tiny == []
    page.set_viewport_size({"width": 320, "height": 700})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, "at 320"


def test_values_of_tokens_by_tap_and_by_keyboard(open_page: Pages, site: Path) -> None:
    page = opened(open_page, site, "#/sae/1", width=390, height=800, has_touch=True, is_mobile=True)
    page.locator("main .hot").nth(1).tap()
    until(
        page,
        "() => { const one = document.getElementById('bubble'); return one && !one.hidden && one.textContent.includes('0.2'); }",
    )
    box = page.locator("#bubble").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.locator("main .peak").first.focus()
    until(page, "() => document.getElementById('bubble').textContent.startsWith('4')")
    page.keyboard.press("ArrowRight")
    until(page, "() => document.getElementById('bubble').textContent.startsWith('0.2')")
    assert page.evaluate("location.hash") == "#/sae/1", "arrows in a text do not leave the feature"


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_moves_for_those_who_ask_for_that(open_page: Pages, site: Path, route: str) -> None:
    page = opened(open_page, site, route, reduced_motion="reduce")
    moving = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((one) => { const style = getComputedStyle(one);
             return [style.transitionDuration, style.animationDuration].some((all) => all.split(",").some((each) => parseFloat(each) > 0.01))
               || style.scrollBehavior === "smooth"; }).map((one) => one.outerHTML.slice(0, 100))"""
    )
    assert moving == [] and page.evaluate("document.getAnimations().length") == 0


def test_the_page_is_read_without_colour(open_page: Pages, site: Path) -> None:
    page = opened(open_page, site, "#/sae/1", forced_colors="active")
    shown = page.evaluate(
        """() => { const one = document.querySelector("main .peak"), style = getComputedStyle(one);
             return style.textDecorationLine !== "none" || style.outlineStyle !== "none" || style.borderBottomStyle !== "none" || Number(style.fontWeight) >= 600
               || style.forcedColorAdjust === "none"; }"""
    )
    assert shown, "the peak differs by more than its colour"


def test_zoom_to_twice_the_size_of_text(open_page: Pages, site: Path) -> None:
    page = opened(open_page, site, "#/sae/1", width=1280)
    page.evaluate("document.documentElement.style.setProperty('font-size', '200%')")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
