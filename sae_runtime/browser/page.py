"""One HTML file that needs no other: tables, pictures and sentences."""

import base64
import html
from collections.abc import Sequence

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
.fires { border-left: 4px solid #ffc93c; padding-left: .5rem !important }
.dim { color: #777 } img { max-width: 100%; margin: .5rem 0 }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 0 2rem }
""".strip()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table; the first column is text with the row's note under it, the others are numbers."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(_row(row, notes[number] if notes else "") for number, row in enumerate(rows))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], note: str) -> str:
    first, *others = map(html.escape, cells)
    small = f"<small>{html.escape(note)}</small>" if note else ""
    return f"<tr><td>{first}{small}</td>" + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"


def heading(text: str) -> str:
    """The title of a section.

    >>> heading("a & b")
    '<h2>a &amp; b</h2>'
    """
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, *, dim: bool = False) -> str:
    """A paragraph; dim where it only explains."""
    return f"<p{' class=dim' * dim}>{html.escape(text)}</p>"


def image(png: bytes, alternative: str) -> str:
    """A picture inside the page itself."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def columns(parts: Sequence[str]) -> str:
    """Parts beside each other where there is room."""
    return f'<div class="columns">{"".join(parts)}</div>'


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )
