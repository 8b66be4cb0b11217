"""Features of a store that a person can make sense of, and the text where they are most active."""

from collections.abc import Iterator
from dataclasses import dataclass

from sae_runtime.demo.cards import Line
from sae_runtime.store.open_store import Store
from sae_runtime.store.records import Context, StoredFeature

_AROUND = 45  # characters shown on either side
_SPANS = 5  # spans of a feature
_DENSITIES = (1e-3, 5e-3)


@dataclass(frozen=True)
class Readable:
    """A feature that a person can make sense of.

    Attributes:
        number: its number.
        density: share of the tokens on which it is active.
        largest: its largest activation.
        word: the token on which it is most active.
        spans: the text around its strongest matches, each with the activation.
    """

    number: int
    density: float
    largest: float
    word: str
    spans: tuple[Line, ...]


def readable(store: Store, count: int) -> list[Readable]:
    """Features that a person can make sense of, the purest first, each about other words.

    A feature is readable if it is active on 0.1 % to 0.5 % of the tokens and its strongest matches are three to eight
    words (one word would be a token detector). Purity is the share of its activations that its top tokens have. The
    criteria are our design.

    Args:
        store: the features.
        count: how many to give at most; other features come last.
    """
    judged = sorted(((*_worth(one), -one.feature) for one in store if one.contexts), reverse=True)
    chosen: dict[str, Readable] = {}
    for *_, negative in judged:
        if len(chosen) == count:
            break
        one = store.feature(-negative)
        spans = tuple(_spans(one))
        chosen.setdefault(spans[0].token.lower()[:4], _described(one, spans))
    return list(chosen.values())


def _worth(feature: StoredFeature) -> tuple[bool, float]:
    words = {context.tokens[context.peak] for context in feature.contexts if context.band == 0}
    readable = (
        _DENSITIES[0] < feature.density < _DENSITIES[1]
        and all(word.isalpha() and len(word) > 4 for word in words)
        and 3 <= len({word.lower() for word in words}) <= 8
    )
    whole = feature.count * feature.mean
    return readable, sum(count * mean for _, count, mean in feature.top_tokens) / whole


def _described(feature: StoredFeature, spans: tuple[Line, ...]) -> Readable:
    return Readable(feature.feature, feature.density, feature.max, spans[0].token.lower(), spans)


def _spans(feature: StoredFeature) -> Iterator[Line]:
    """The strongest matches whose surroundings differ."""
    seen: set[tuple[str, str]] = set()
    for context in feature.contexts:
        span = _span(context)
        if len(seen) < _SPANS and (span.before[-10:], span.token) not in seen:
            seen.add((span.before[-10:], span.token))
            yield span


def _span(context: Context) -> Line:
    """The text around the peak; it begins and ends at whole words."""
    assert context.text is not None and context.offsets is not None  # the demo's features have texts
    begin, end = context.offsets[context.peak].tolist()
    before, after = context.text[max(begin - _AROUND, 0) : begin], context.text[end : end + _AROUND]
    before = before if begin <= _AROUND else before[before.find(" ") + 1 :]
    after = after if end + _AROUND >= len(context.text) else after[: after.rfind(" ") + 1]
    return Line(context.value, before, context.text[begin:end], after)
