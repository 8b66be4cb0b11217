"""What a site says of one feature, as plain JSON values."""

from collections.abc import Sequence
from typing import Any

from sae_runtime.browser.site import shown
from sae_runtime.browser.site.segments import segments
from sae_runtime.browser.site.shown import bounded, short
from sae_runtime.store.records import Context, StoredFeature


def feature_page(feature: StoredFeature, words: Sequence[str], contexts: Sequence[Context]) -> dict[str, Any]:
    """The object of a feature in its shard.

    Args:
        feature: as the store has it.
        words: the texts of its top tokens, as people read them.
        contexts: those to show.
    """
    top = zip(words, feature.top_tokens, strict=True)
    return {
        "feature": feature.feature,
        "label": None if feature.label is None else bounded(feature.label, shown.LABEL),
        "source": None if feature.label_source is None else bounded(feature.label_source, shown.LABEL),
        "density": short(feature.density),
        "count": feature.count,
        "mean": short(feature.mean),
        "max": short(feature.max),
        "histogram": feature.histogram[1].tolist(),
        "bands": [[short(band.low), short(band.high), band.count] for band in feature.bands],
        "tokens": [[word, count, short(mean)] for word, (_, count, mean) in top],
        "neighbours": _pairs(feature.neighbours),
        "together": _pairs(feature.together),
        "promoted": _tokens(feature.promoted),
        "suppressed": _tokens(feature.suppressed),
        "contexts": [_context(context) for context in contexts],
    }


def _context(context: Context) -> dict[str, Any]:
    parts, peak = segments(context)
    return {
        "band": context.band,
        "value": short(context.value),
        "peak": peak,
        "parts": parts,
        "file": shown.file_name(context.file),
        "row": context.row,
        "licence": shown.name(context.licence),
    }


def _pairs(pairs: Sequence[tuple[int, float]] | None) -> list[list[Any]] | None:
    return None if pairs is None else [[feature, short(value)] for feature, value in pairs]


def _tokens(pairs: Sequence[tuple[str, float]] | None) -> list[list[Any]] | None:
    return None if pairs is None else [[bounded(text, shown.TOKEN), short(value)] for text, value in pairs]
