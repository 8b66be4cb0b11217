"""What only the demo's page shows: readable features and neighbours."""

import html
from collections.abc import Sequence

from sae_runtime.demo.spans import ReadableFeature


def feature_card(found: ReadableFeature) -> str:
    """A feature with the spans where it fires most."""
    lines = "".join(
        f"<li>{html.escape(span.before)}<mark>{html.escape(span.token)}</mark>{html.escape(span.after)} "
        f'<span class="dim">{span.value:.1f}</span></li>'
        for span in found.spans
    )
    title = f"feature {found.number} &middot; “{html.escape(found.word)}” "
    return (
        f'<div><h3>{title}<span class="dim">on {found.density:.2%} of tokens</span></h3>'
        f'<ul class="spans">{lines}</ul></div>'
    )


def sentences(title: str, texts: Sequence[tuple[float, str, bool]]) -> str:
    """Neighbours of a query: cosine, text, and whether the steered feature fires in it."""
    lines = "".join(
        f'<li{" class=fires" * fires}><span class="dim">{cosine:.2f}</span> {html.escape(text)}</li>'
        for cosine, text, fires in texts
    )
    return f'<div><h3>{html.escape(title)}</h3><ul class="spans">{lines}</ul></div>'
