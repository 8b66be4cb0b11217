"""The demo's page: what was fitted, what it looks like and what it does, in one HTML file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from sae_runtime.demo.spans import ReadableFeature

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
.spans { margin: 0; padding: 0; list-style: none; font-size: .92rem }
.spans li { padding: .15rem 0 } mark { background: #ffe08a; padding: 0 .15em; border-radius: 3px }
.fires { border-left: 4px solid #ffc93c; padding-left: .5rem !important }
.dim { color: #777 } img { max-width: 100%; margin: .5rem 0 }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2rem }
""".strip()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def feature(found: ReadableFeature) -> str:
    """A feature with the spans where it fires most."""
    lines = "".join(
        f"<li>{html.escape(span.before)}<mark>{html.escape(span.token)}</mark>{html.escape(span.after)} "
        f'<span class="dim">{span.value:.1f}</span></li>'
        for span in found.spans
    )
    title = f"feature {found.number} &middot; “{html.escape(found.word)}” "
    return f'<h3>{title}<span class="dim">on {found.density:.2%} of tokens</span></h3><ul class="spans">{lines}</ul>'


def sentences(title: str, texts: Sequence[tuple[float, str, bool]]) -> str:
    """Neighbours of a query: cosine, text, and whether the steered feature fires in it."""
    lines = "".join(
        f'<li{" class=fires" * fires}><span class="dim">{cosine:.2f}</span> {html.escape(text)}</li>'
        for cosine, text, fires in texts
    )
    return f'<div><h3>{html.escape(title)}</h3><ul class="spans">{lines}</ul></div>'


def image(path: Path, alternative: str) -> str:
    """A picture inside the page itself."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )
