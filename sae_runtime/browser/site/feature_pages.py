"""What a site says of one feature, as plain JSON values."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.browser.site import shown
from sae_runtime.browser.site.segments import segments
from sae_runtime.browser.site.shards import json_bytes
from sae_runtime.browser.site.shown import bounded, short, shorts
from sae_runtime.browser.site.whole_words import distinct
from sae_runtime.store.records import Context, StoredFeature

NAMING = 3  # top tokens that name a feature without a label
_LISTED = 50  # tokens and other features in a list
_BINS = 200
_MOST = 2_000_000  # bytes of a feature; a shard has at least one


def page_bytes(page: dict[str, Any]) -> bytes:
    """The JSON of a feature, with fewer contexts where all would be too many for a file."""
    content = json_bytes(page)
    while len(content) > _MOST and page["contexts"]:
        page = page | {"contexts": page["contexts"][: len(page["contexts"]) // 2]}
        content = json_bytes(page)
    return content


def feature_page(feature: StoredFeature, words: Sequence[str], name_of: Callable[[int], str]) -> dict[str, Any]:
    """The object of a feature in its shard.

    Args:
        feature: as the store has it.
        words: the texts of its top tokens, as people read them.
        name_of: gives the name of a token by its id.
    """
    label, source = feature.label, feature.label_source
    if source == "top tokens":  # a label of pieces of words is none that people read
        label = ", ".join(distinct(words, NAMING)) or label
    top = list(zip(words, feature.top_tokens, strict=True))[:_LISTED]
    return {
        "feature": feature.feature,
        "label": None if label is None else bounded(label, shown.LABEL),
        "source": None if source is None else bounded(source, shown.LABEL),
        "density": short(feature.density),
        "count": feature.count,
        "mean": short(feature.mean),
        "max": short(feature.max),
        **_histogram(*feature.histogram),
        "bands": [[short(band.low), short(band.high), band.count] for band in feature.bands],
        "tokens": [[word, count, short(mean)] for word, (_, count, mean) in top],
        "neighbours": _pairs(feature.neighbours),
        "together": _pairs(feature.together),
        "promoted": _tokens(feature.promoted),
        "suppressed": _tokens(feature.suppressed),
        "contexts": [_context(context, name_of) for context in feature.contexts],
    }


def _context(context: Context, name_of: Callable[[int], str]) -> dict[str, Any]:
    parts, peak = segments(context, name_of)
    return {
        "band": context.band,
        "value": short(context.value),
        "peak": peak,
        "parts": parts,
        "file": shown.file_name(context.file),
        "row": context.row,
        "licence": shown.name(context.licence),
    }


def _histogram(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> dict[str, list[Any]]:
    """The counts of equal bins; where there are more than a picture shows, of some beside each other, with edges."""
    if len(counts) <= _BINS:
        return {"histogram": counts.tolist()}
    begins = np.arange(_BINS) * len(counts) // _BINS  # which makes bins of unequal width
    shown = np.append(edges[begins], edges[-1])
    return {"histogram": np.add.reduceat(counts, begins).tolist(), "edges": shorts(shown.tolist())}


def _pairs(pairs: Sequence[tuple[int, float]] | None) -> list[list[Any]] | None:
    return None if pairs is None else [[feature, short(value)] for feature, value in pairs[:_LISTED]]


def _tokens(pairs: Sequence[tuple[str, float]] | None) -> list[list[Any]] | None:
    return None if pairs is None else [[bounded(text, shown.TOKEN), short(value)] for text, value in pairs[:_LISTED]]
