"""Texts of files, shown so that they cannot move the cursor, colour a terminal or turn the words around them."""

import re

# Controls, the characters that set the direction of text, the separators of lines, and halves of surrogate pairs.
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, *, keep: str = "") -> str:
    r"""A text with its control characters and direction marks written as escapes.

    Args:
        text: a text, or what `str` makes one of.
        keep: control characters that stay.

    >>> printable("\x1b[2Jgpt2\u202e\n"), printable("one\ntwo", keep="\n")
    ('\\x1b[2Jgpt2\\u202e\\n', 'one\ntwo')
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), str(text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
