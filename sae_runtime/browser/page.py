"""One HTML file that needs no other file: tables, pictures and sentences. Every function escapes its text."""

import base64
import html
from collections.abc import Sequence

from sae_runtime.core.printable import printable

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left }
td:first-child { min-width: 11rem }
td small { display: block; color: #777; font-size: .8rem; line-height: 1.35; max-width: 26rem }
.wide { overflow-x: auto; margin-bottom: 1.5rem }
.spans { margin: 0; padding: 0; list-style: none; font-size: .92rem }
.spans li { padding: .15rem 0 } mark { background: #ffe08a; padding: 0 .15em; border-radius: 3px }
.active { border-left: 4px solid #ffc93c; padding-left: .5rem !important }
.dim { color: #777 } img { max-width: 100%; margin: .5rem 0 }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 0 2rem }
""".strip()


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


def heading(text: str) -> str:
    """The title of a section.

    >>> heading("a & b")
    '<h2>a &amp; b</h2>'
    """
    return f"<h2>{escaped(text)}</h2>"


def paragraph(text: str, *, dim: bool = False) -> str:
    """A paragraph; `dim` makes it grey.

    >>> paragraph("x > 0")
    '<p>x &gt; 0</p>'
    """
    return f"<p{' class=dim' * dim}>{escaped(text)}</p>"


def image(png: bytes, alternative: str) -> str:
    """A PNG picture inside the page itself.

    >>> image(b"", "density by rank")
    '<img alt="density by rank" src="data:image/png;base64,">'
    """
    data = base64.b64encode(png).decode()
    return f'<img alt="{escaped(alternative)}" src="data:image/png;base64,{data}">'


def columns(parts: Sequence[str]) -> str:
    """HTML parts beside each other where there is room.

    >>> columns(["<p>left</p>", "<p>right</p>"])
    '<div class="columns"><p>left</p><p>right</p></div>'
    """
    return f'<div class="columns">{"".join(parts)}</div>'


def page(title: str, parts: Sequence[str]) -> str:
    """The text of the HTML file.

    >>> "<body><h1>SAEs</h1><p>one</p></body>" in page("SAEs", [paragraph("one")])
    True
    """
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escaped(title)}</h1>{''.join(parts)}</body></html>\n"
    )
