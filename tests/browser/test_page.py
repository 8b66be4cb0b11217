import base64
import re

from sae_runtime.browser import page


def test_text_is_escaped() -> None:
    table = page.table(["<b>"], [["<b>", "<b>"]], ["<b>"])
    assert "<b>" not in table + page.heading("<b>") + page.paragraph("<b>") + page.page("<b>", [])
    assert "<small>&lt;b&gt;</small>" in table
    assert '"><b>' not in page.image(b"", '"><b>')


def test_an_image_is_inside_the_page() -> None:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page.image(b"bytes of it", "what it shows"))
    assert base64.b64decode(data) == b"bytes of it"


def test_notes_are_in_the_first_column() -> None:
    assert "<td>FVU<small>why</small></td><td>0.5</td>" in page.table(["", "a"], [["FVU", "0.5"]], ["why"])
    assert "<small>" not in page.table(["", "a"], [["FVU", "0.5"]])


def test_marks_that_turn_the_direction_of_text_are_shown() -> None:
    text = "gpt2\u202e<b>\x1b\u2066"
    made = [page.heading(text), page.paragraph(text), page.table([text], [[text]], [text]), page.page(text, [])]
    for html in (*made, page.image(b"", text)):
        assert r"gpt2\u202e&lt;b&gt;\x1b\u2066" in html
        assert not set("\u202e\u2066\x1b") & set(html)
