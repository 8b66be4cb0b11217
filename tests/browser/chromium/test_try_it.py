"""Try it, with a model that is told by hand: loading, reading, steering, the address, and hostile texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_site import feature, write_json, write_site
from site_host import Answer
from watched_pages import Pages, until

EVIL = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>\"&amp;\u202e"
SENTENCES = ["aaa", "bbb", "ccc", "aab", "abb", "abc"]
BYTES = 99_300_000
READY = ".load-box .ready"
STEER = ".strongest .steer"


@pytest.fixture
def site_of(tmp_path: Path) -> Callable[..., Path]:
    def give(label: str = "label", **about: Any) -> Path:
        rows = [feature(number, label=f"{label} {number}", max=2.0) for number in range(26)]
        folder = write_site(tmp_path / "site", {"sae": rows}, model="model/model.json")
        told = {"name": "model", "kind": "vectors", "bytes": BYTES, "weights": "float32", "agreement": None}
        told |= {"problem": None, "sentences": SENTENCES, "text": None}
        told |= {"saes": [{"name": "sae", "site": "sae", "d_sae": 26, "hook": "h", "edits": True}]}
        write_json(folder / "model/model.json", told | about)
        (folder / "code/model").mkdir(exist_ok=True)
        stub = Path(__file__).with_name("stub_page_model.js")
        (folder / "code/model/page_model.js").write_text(stub.read_text())
        return folder

    return give


def load(page: Any) -> None:
    page.click(".load")
    page.wait_for_selector(READY)


def ranking(page: Any, column: int) -> list[str]:
    """The sentences of a ranking, the nearest first."""
    shown: list[str] = page.locator(f".neighbours .pair > div:nth-child({column}) .ranks .text").all_inner_texts()
    return shown


def test_nothing_is_loaded_before_its_size_is_told(open_page: Pages, site_of: Callable[..., Path]) -> None:
    folder = site_of(weights="int8", agreement={"texts": 60, "jaccard": 0.9634})
    page = open_page(folder, "#/sae/try")
    page.wait_for_selector(".load")
    told = page.inner_text(".load-box")
    assert "The model is 99 MB; it runs in your browser, and no text leaves this machine." in told
    assert "int8" in told and "96.3 %" in told and "60 texts" in told
    assert not any("page_model.js" in one for one in open_page.requests(page))
    load(page)
    assert page.evaluate("window.stub.loads") == 1
    assert page.locator(".load").count() == 0


def test_loading_shows_how_far_it_is_and_can_be_cancelled(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try")
    page.evaluate("window.stub = { wait: 60, steps: 40 }")
    page.click(".load")
    until(page, "() => document.querySelector('.load-box progress')?.value > 0.05")
    assert "MB of 99 MB" in page.inner_text(".load-box")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(".load")
    assert page.evaluate("window.stub.closed") >= 1
    page.evaluate("Object.assign(window.stub, { wait: 0, steps: 2 })")
    load(page)
    page.wait_for_timeout(200)  # the cancelled one, were it still running, would end now
    assert page.locator(READY).count() == 1 and page.evaluate("window.stub.loads") == 2


def test_failure_of_a_load_is_told_and_tried_again(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try")
    page.evaluate("text => { window.stub = { fail: text }; }", f"no room {EVIL}")
    page.click(".load")
    page.wait_for_selector(".load-box [role=alert]")
    assert page.inner_text(".load-box [role=alert]").startswith("no room <img")
    page.evaluate("window.stub.fail = ''")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(READY)


def test_model_stays_loaded_from_page_to_page(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try")
    load(page)
    page.fill("#typed", "one two")
    page.fill("#add-feature", "7")
    page.keyboard.press("Enter")
    page.wait_for_selector(".edits li")
    page.get_by_role("link", name="Overview").click()
    page.wait_for_selector("main .overview")
    page.get_by_role("link", name="Try it", exact=True).first.click()
    page.wait_for_selector(STEER)
    assert page.input_value("#typed") == "one two"
    assert page.locator(".edits li").count() == 1
    assert page.evaluate("window.stub.loads") == 1


def test_search_by_a_text_loads_nothing_unasked(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/search?text=baa")
    until(page, "() => document.querySelector('[role=status].note')?.textContent.includes('Load the model first')")
    page.wait_for_selector(".load")
    assert "The model is 99 MB" in page.inner_text(".load-box")
    assert not any("page_model.js" in one for one in open_page.requests(page))
    load(page)
    rows = page.locator("table.features tbody tr")
    rows.first.wait_for()
    assert [row.split()[0] for row in rows.all_inner_texts()] == ["0", "1"]
    page.fill("#fires-text", "cd")
    page.keyboard.press("Control+Enter")
    until(page, "() => document.querySelector('table.features tbody a .id')?.textContent === '2'")
    assert page.evaluate("location.hash") == "#/sae/search?text=cd"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.eval_on_selector(".results .wide", "(one) => one.scrollWidth - one.clientWidth") <= 0


def test_typed_text_is_read_and_a_token_chosen(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try?text=baa%20%20cd")
    load(page)
    page.wait_for_selector(STEER)
    tokens = page.locator(".tokens [role=option]")
    assert tokens.all_inner_texts() == ["[CLS]", "baa", "cd"]
    rows = page.locator(".strongest .list li")
    assert [one.split("\n")[0].split()[0] for one in rows.all_inner_texts()] == ["0", "1", "2", "3"]
    shares = tokens.evaluate_all("all => all.map((one) => Number(one.style.getPropertyValue('--share')))")
    assert shares[0] == 0 and shares[1] == pytest.approx(0.8) and shares[2] == pytest.approx(0.4)
    tokens.nth(1).focus()
    before = page.url
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "cd"
    assert page.url == before, "the arrows of a text leave the page's own alone"
    assert "“cd”" in page.inner_text(".whose")
    assert rows.count() == 2
    page.get_by_role("button", name="Shade the tokens by feature 3").click()
    shares = tokens.evaluate_all("all => all.map((one) => Number(one.style.getPropertyValue('--share')))")
    assert shares == [0, 0, pytest.approx(0.8)]
    page.get_by_role("button", name="Each token's strongest").click()
    page.fill("#typed", "zz")
    until(page, "() => document.querySelectorAll('.tokens [role=option]').length === 2")
    page.fill("#typed", "")
    until(page, "() => document.querySelector('.strongest .none')?.textContent === 'Type a text above.'")


def test_edits_move_the_neighbours(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try?text=ab")
    load(page)
    page.wait_for_selector(".ranks")
    first = ranking(page, 1)
    assert first[:2] == ["aab", "abb"] and len(first) == 6
    assert not page.is_visible(".neighbours .pair > div:nth-child(2)")
    page.get_by_role("button", name="Steer feature 1").click()
    page.wait_for_selector(".neighbours .pair > div:nth-child(2) .ranks")
    assert page.evaluate("document.activeElement.type") == "range", "the slider can be moved at once"
    page.keyboard.press("End")
    until(page, "() => document.querySelector('.edits input[type=number]').value === '8'")
    until(
        page, "() => document.querySelector('.neighbours .pair > div:nth-child(2) .ranks .text').textContent === 'bbb'"
    )
    assert page.locator(".neighbours .pair > div:nth-child(2) .ranks .up").first.inner_text().strip().startswith("↑")
    assert ranking(page, 1) == first
    page.select_option(".edits select", "ablate")
    until(
        page, "() => document.querySelector('.neighbours .pair > div:nth-child(2) .ranks .text').textContent === 'aaa'"
    )
    assert page.is_disabled(".edits input[type=range]")
    page.uncheck(".switches input")
    page.wait_for_selector(".neighbours .pair > div:nth-child(2)", state="hidden")
    page.check(".switches input")
    page.wait_for_selector(".neighbours .pair > div:nth-child(2) .ranks")
    page.get_by_role("button", name="Remove the edit of feature 1").click()
    page.wait_for_selector(".neighbours .pair > div:nth-child(2)", state="hidden")


def test_sliding_drops_what_is_no_longer_wanted(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try?text=ab&edits=set:1:1")
    load(page)
    page.wait_for_selector(".neighbours .pair > div:nth-child(2) .ranks")
    page.evaluate("Object.assign(window.stub, { wait: 150, embeds: [] })")
    page.evaluate("""() => {
      const slider = document.querySelector('.edits input[type=range]');
      for (let value = 1; value <= 40; value++) {
        slider.value = value / 10;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
      }
    }""")
    until(page, "() => window.stub.embeds.some(({ edits }) => edits[0]?.value === 4)")
    runs = page.evaluate("window.stub.embeds.filter(({ edits }) => edits.length).map(({ edits }) => edits[0].value)")
    assert len(runs) <= 3 and runs[-1] == 4, "only the newest of those that wait is run"
    assert not page.evaluate("window.stub.embeds.some(({ edits }) => !edits.length)"), "the list is read once"


def test_address_restores_text_and_edits(open_page: Pages, site_of: Callable[..., Path]) -> None:
    folder = site_of()
    page = open_page(folder, "#/sae/try?text=a%20%26%20b&edits=set:3:5.5,ablate:12,nonsense:1:1,set:99:1,scale:4:x")
    page.wait_for_selector(".edits li:nth-child(2)")
    assert page.input_value("#typed") == "a & b" and page.locator(".edits li").count() == 2
    page.fill(".edits li:nth-child(1) input[type=number]", "7.25")
    page.select_option(".edits li:nth-child(2) select", "add")
    until(page, "() => location.hash.includes('set%3A3%3A7.25')")
    page.reload()
    page.wait_for_selector(".edits li:nth-child(2)")
    assert page.input_value(".edits li:nth-child(1) input[type=number]") == "7.25"
    assert page.input_value(".edits li:nth-child(2) select") == "add"
    assert page.input_value("#typed") == "a & b"
    page.evaluate("location.hash = '#/sae/try?text=other&edits=cap:2:1'")
    until(page, "() => document.querySelectorAll('.edits li').length === 1")
    assert page.input_value("#typed") == "other" and page.input_value(".edits select") == "cap"
    page.fill("#typed", "long " * 1000)
    until(page, "() => !location.hash.includes('text=')")
    page.get_by_role("button", name="Copy link").click()
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_features_are_added_by_number_and_by_label(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try")
    error, field = page.locator(".steering .error"), page.locator("#add-feature")
    for typed, said in {
        "26": "there is no 26",
        "label": "Several features fit",
        "nothing such": "No feature has",
    }.items():
        field.fill(typed)
        field.press("Enter")
        until(page, f"() => document.querySelector('.steering .error').textContent.includes('{said}')")
    field.fill("Label 17")
    field.press("Enter")
    page.wait_for_selector(".edits li")
    assert "17 label 17" in page.inner_text(".edits") and error.inner_text() == ""
    field.type("label 2")
    until(page, "() => document.querySelectorAll('#suggested-features option').length > 1")
    field.fill(page.evaluate("document.querySelector('#suggested-features option').value"))
    field.press("Enter")
    page.wait_for_selector(".edits li:nth-child(2)")
    assert "2 label 2" in page.inner_text(".edits li:nth-child(2)")
    field.fill("17")
    field.press("Enter")
    page.wait_for_timeout(100)
    assert page.locator(".edits li").count() == 2, "a feature has one edit"
    page.get_by_role("button", name="Remove all").click()
    assert page.locator(".edits li").count() == 0


def test_own_list_of_sentences(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try?text=z")
    load(page)
    page.wait_for_selector(".ranks")
    page.click(".neighbours summary")
    assert page.input_value("#sentences").split("\n") == SENTENCES
    page.fill("#sentences", f"zz\n\n  {EVIL}  \nzz\nyz")
    until(page, "() => document.querySelectorAll('.ranks li').length === 3")
    assert ranking(page, 1)[:2] == ["zz", "yz"]
    assert EVIL.replace("\u202e", "\\u202e") in ranking(page, 1)
    page.fill("#sentences", "")
    until(page, "() => document.querySelector('.neighbours .error').textContent.includes('one a line')")
    page.get_by_role("button", name="Texts of the corpus").click()
    until(page, "() => document.querySelectorAll('.ranks li').length === 6")


def test_answers_stand_side_by_side(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(kind="text", text={"chat": None}), "#/sae/try?edits=set:5:3")
    until(page, "() => document.getElementById('typed')?.value === 'What should I do this weekend?'")
    load(page)
    page.fill("#answer-tokens", "4")
    page.click(".write")
    until(page, "() => document.querySelectorAll('.answers .note')[1].textContent.includes('a second')")
    assert page.locator(".answers .answer").all_inner_texts() == [" plain" * 4, " 5" * 4]
    assert page.locator(".answers .note").all_inner_texts() == ["4 tokens, 2 a second"] * 2
    assert "max_new_tokens=4" in page.inner_text(".programs pre")
    page.evaluate("window.stub.wait = 100")
    page.fill("#answer-tokens", "100")
    page.click(".write")
    until(page, "() => document.querySelector('.answers .answer').textContent.length > 6")
    page.click(".stop")
    page.wait_for_selector(".stop", state="hidden")
    assert 1 <= page.inner_text(".answers .answer").count("plain") < 100
    assert page.is_enabled(".write")


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_hostile_texts_stay_texts(open_page: Pages, site_of: Callable[..., Path], width: int, dark: bool) -> None:
    folder = site_of(label=EVIL, name=EVIL, weights=EVIL, agreement={"jaccard": 1}, sentences=[EVIL, f"{EVIL} ab"])
    page = open_page(folder, "#/sae/try?edits=set:1:3,add:2:1", width=width, dark=dark)
    page.wait_for_selector(".load")
    assert "<img src=x" in page.inner_text(".load-box")
    load(page)
    page.fill("#typed", f"{EVIL} ab")
    until(page, "() => document.querySelector('.ranks .text')?.textContent.includes('<img')")
    until(page, "() => document.querySelector('.edits .what').textContent.includes('<img')")
    for tab in ("Python", "curl", "openai"):
        page.get_by_role("tab", name=tab).click()
        assert "\u202e" not in page.inner_text(".programs pre")
    assert page.locator("main img, main iframe, main [onerror], main script").count() == 0
    wide = "document.scrollingElement.scrollWidth - innerWidth"
    assert page.evaluate(wide) <= 0, "nothing stands beside the screen"


def test_site_without_a_model_says_how_to_get_one(open_page: Pages, site_of: Callable[..., Path]) -> None:
    folder = site_of()
    site = json.loads((folder / "site.json").read_text())
    open_page.host(folder).answers["site.json"] = Answer(body=json.dumps({**site, "model": None}).encode())
    page = open_page(folder, "#/sae/try?edits=set:1:3")
    until(
        page, "() => document.querySelector('.load-box')?.textContent.includes('sae-runtime serve MODEL --site SITE')"
    )
    assert page.locator(".load-box button").count() == 0
    assert "Edit.set(1, 3.0)" in page.inner_text(".programs pre"), "the programs are told all the same"


@pytest.mark.parametrize(
    "about, said",
    [
        ({"problem": "The graph needs a picture."}, "The graph needs a picture."),
        ({"saes": [{"name": "x", "site": None, "d_sae": 9, "edits": True}]}, "does not have this SAE"),
        ({"saes": [{"name": "sae", "site": "sae", "d_sae": 26, "edits": False}]}, "takes no edits"),
        ({"kind": "other"}, "neither vectors nor text"),
    ],
)
def test_what_a_model_cannot_do_is_told(
    open_page: Pages, site_of: Callable[..., Path], about: dict[str, Any], said: str
) -> None:
    page = open_page(site_of(**about), "#/sae/try?text=ab")
    if "problem" not in about:
        load(page)
    until(page, "said => document.querySelector('main').textContent.includes(said)", said)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'{"kind": "vectors"}', b'{"kind": "vectors", "name": "a", "bytes": null}']
)
def test_broken_model_file_is_a_sentence(open_page: Pages, site_of: Callable[..., Path], body: bytes) -> None:
    folder = site_of()
    open_page.host(folder).answers["model/model.json"] = Answer(body=body)
    page = open_page(folder, "#/sae/try?text=ab&edits=set:1:3")
    page.wait_for_selector(".load-box [role=alert]")
    assert "write the site again" in page.inner_text(".load-box")
    assert "Edit.set(1, 3.0)" in page.inner_text(".programs pre")


def test_address_is_left_alone_when_the_visitor_goes_on(open_page: Pages, site_of: Callable[..., Path]) -> None:
    page = open_page(site_of(), "#/sae/try")
    page.wait_for_selector("#typed")
    page.evaluate("""() => {
      const field = document.getElementById("typed");
      field.value = "ab";
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }""")
    page.evaluate("() => new Promise((go) => setTimeout(go, 290)).then(() => { location.hash = '#/sae/3'; })")
    page.wait_for_timeout(400)
    assert page.url.endswith("#/sae/3") and page.locator(".try-it").count() == 0
