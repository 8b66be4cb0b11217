"""Lines of text with a number each, for the terminal and for the demo's page."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from sae_runtime.browser.page import escaped


@dataclass(frozen=True)
class Line:
    """A number and a text, in which one token may be marked.

    Attributes:
        value: the number.
        before: the text before the token, or the whole text.
        token: the marked token; "" for none.
        after: the text after the token.
        active: whether the line itself is marked.
    """

    value: float
    before: str
    token: str = ""
    after: str = ""
    active: bool = False


Lists = list[tuple[str, tuple[Line, ...]]]
"""Titles and their lines."""


def printed(title: str, lines: Sequence[Line]) -> str:
    """The lines as text for a terminal, with * at marked lines and [] around marked tokens.

    >>> print(printed("nearest", [Line(0.5, "one ", "two"), Line(0.25, "three", active=True)]))
      nearest
         0.50  one [two]
      *  0.25  three
    """
    out = f"  {title}"
    for line in lines:
        text = f"{line.before}[{line.token}]{line.after}" if line.token else line.before
        text = textwrap.shorten(text, 100, placeholder="...")
        out += f"\n  {'*' if line.active else ' '} {line.value:5.2f}  {text}"
    return out


def markup(title: str, lines: Sequence[Line]) -> str:
    """The lines as HTML.

    >>> markup("a & b", [Line(0.5, "one ", "two")])
    '<div><h3>a &amp; b</h3><ul class="spans"><li><small>0.50</small> one <mark>two</mark></li></ul></div>'
    """
    items = ""
    for line in lines:
        token = f"<mark>{escaped(line.token)}</mark>" if line.token else ""
        text = f"{escaped(line.before)}{token}{escaped(line.after)}"
        items += f"<li{' class=active' * line.active}><small>{line.value:.2f}</small> {text}</li>"
    return f'<div><h3>{escaped(title)}</h3><ul class="spans">{items}</ul></div>'
