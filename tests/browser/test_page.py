import base64
import hashlib
import re

from sae_runtime.browser import page


def test_text_is_escaped() -> None:
    table = page.table(["<b>"], [["<b>", "<b>"]], ["<b>"])
    assert "<b>" not in table + page.section("<b>", []) + page.paragraph("<b>") + page.page("<b>", [])
    assert "<small>&lt;b&gt;</small>" in table


def test_the_policy_of_a_page_allows_its_own_style_and_nothing_else() -> None:
    made = page.page("SAEs", [])
    (style,) = re.findall("<style>(.*?)</style>", made, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'sha256-{digest}'; " in made
    assert "style=" not in made and "--ink" in style


def test_notes_are_in_the_first_column() -> None:
    assert "<td>FVU<small>why</small></td><td>0.5</td>" in page.table(["", "a"], [["FVU", "0.5"]], ["why"])
    assert "<small>" not in page.table(["", "a"], [["FVU", "0.5"]])


def test_marks_that_turn_the_direction_of_text_are_shown() -> None:
    text = "gpt2\u202e<b>\x1b\u2066"
    made = [page.section(text, []), page.paragraph(text), page.table([text], [[text]], [text]), page.page(text, [])]
    for html in made:
        assert r"gpt2\u202e&lt;b&gt;\x1b\u2066" in html
        assert not set("\u202e\u2066\x1b") & set(html)
