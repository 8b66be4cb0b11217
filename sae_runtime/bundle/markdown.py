"""Texts of files inside Markdown: they show as they are, and are never markup, a link, a table cell's end or HTML."""

import re
from collections.abc import Iterable, Sequence

from sae_runtime.core.printable import printable

_NAME, _TEXT = 200, 2000  # characters of a name and of a sentence that are shown
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+=,()\[\]# -]*[A-Za-z0-9_./:@+=,()\[\]#-]")  # inside a code span, none is markup


def inline(text: object) -> str:
    """A text of a file in a line or a table cell of Markdown; a code span where that shows it as it is.

    Control characters and direction marks become escapes, and long texts are cut.

    >>> inline("encoder.layer.3"), inline("<b>|`x`")
    ('`encoder.layer.3`', '&#60;b&#62;&#124;&#96;x&#96;')
    """
    shown = _cut(text, _NAME)
    if not shown.startswith(" ") and _PLAIN.fullmatch(shown):
        return f"`{shown}`"
    return _escaped(shown)


def words(text: object) -> str:
    """A sentence of a file inside a paragraph of Markdown, as words, without a code span.

    >>> words("It is [here](http://x.y), too. See below.")
    'It is &#91;here&#93;(http&#58;&#47;&#47;x&#46;y), too. See below.'
    """
    return _escaped(_cut(text, _TEXT))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already.

    >>> print(table(["file", "content"], [["`a`", "x"]]))
    | file | content |
    |---|---|
    | `a` | x |
    """
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cut(text: object, most: int) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[:most]} ..."


def _escaped(text: str) -> str:
    """A text whose punctuation cannot be markup: as numbers of HTML, but for stops and commas before a space."""
    return "".join(
        character
        if character == " " or character.isalnum() or character in ",;()" or _ends_a_word(character, text, number)
        else f"&#{ord(character)};"
        for number, character in enumerate(text)
    )


def _ends_a_word(character: str, text: str, number: int) -> bool:
    return character == "." and number > 0 and text[number + 1 : number + 2] in ("", " ")
