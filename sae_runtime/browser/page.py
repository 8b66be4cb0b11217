"""One HTML file that needs no other file: tables, pictures and sentences. Every function escapes its text."""

import base64
import hashlib
import html
from collections.abc import Sequence
from importlib.resources import files

from sae_runtime.core.printable import printable

# What no other page has, beside the common look.
_STYLE = """
td small { max-width: 26rem; line-height: 1.35 } td:first-child { min-width: 11rem }
.spans { margin: 0; padding: 0; list-style: none; font-size: .92rem } .spans li { padding: .15rem 0 }
.spans .active { border-left: 4px solid var(--bar); padding-left: .5rem }
mark { background: rgba(var(--heat), .6); color: inherit; padding: 0 .15em; border-radius: 3px }
"""


def escaped(text: str) -> str:
    r"""A text as HTML; marks that turn the direction of what follows are shown as escapes.

    >>> escaped("a < b\u202e")
    'a &lt; b\\u202e'
    """
    return html.escape(printable(text, keep="\n\t"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table. The first column is text, with the row's note under it; the other columns are numbers.

    >>> "<td>L0<small>mean</small></td><td>16</td>" in table(["", "sae"], [["L0", "16"]], ["mean"])
    True
    """
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = ""
    for number, row in enumerate(rows):
        first, *others = map(escaped, row)
        small = f"<small>{escaped(notes[number])}</small>" if notes and notes[number] else ""
        body += f"<tr><td>{first}{small}</td>" + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, parts: Sequence[str]) -> str:
    """HTML parts in a frame, under a title unless it is empty.

    >>> section("a & b", ["<p>one</p>"])
    '<section><h2>a &amp; b</h2><p>one</p></section>'
    """
    heading = f"<h2>{escaped(title)}</h2>" if title else ""
    return f"<section>{heading}{''.join(parts)}</section>"


def paragraph(text: str, *, dim: bool = False) -> str:
    """A paragraph; `dim` makes it small and grey.

    >>> paragraph("x > 0")
    '<p>x &gt; 0</p>'
    """
    return f"<p{' class=note' * dim}>{escaped(text)}</p>"


def code(text: str) -> str:
    """A command or a program, as it is.

    >>> code("a && b")
    '<pre>a &amp;&amp; b</pre>'
    """
    return f"<pre>{escaped(text)}</pre>"


def columns(parts: Sequence[str]) -> str:
    """HTML parts beside each other where there is room.

    >>> columns(["<p>left</p>", "<p>right</p>"])
    '<div class="columns"><p>left</p><p>right</p></div>'
    """
    return f'<div class="columns">{"".join(parts)}</div>'


def page(title: str, parts: Sequence[str]) -> str:
    """The text of the HTML file, which may load nothing, run nothing and send nothing.

    >>> "<h1>SAEs</h1></header><main><p>one</p></main></body>" in page("SAEs", [paragraph("one")])
    True
    """
    style = files(__package__).joinpath("assets/shared/look.css").read_text(encoding="utf-8") + _STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>"
        f"<body><header><h1>{escaped(title)}</h1></header><main>{''.join(parts)}</main></body></html>\n"
    )
