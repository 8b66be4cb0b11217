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
