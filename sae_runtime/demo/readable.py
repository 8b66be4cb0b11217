"""Features of a store that a person can make sense of, and the text where they are most active."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sae_runtime.demo.lines import Line
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
        word: the word that most spans mark.
        spans: the text around its strongest matches, each with the activation.
    """

    number: int
    density: float
    largest: float
    word: str
    spans: tuple[Line, ...]


def readable(store: Store, count: int) -> list[Readable]:
    """Features that a person can make sense of, the purest first, each about other words.

    A feature is readable if it is active on 0.1 % to 0.5 % of the tokens, and its strongest matches come from many
    documents and are three to eight words (one word would be a token detector). Purity is the share of its activations
    that these words have. The criteria are our design.

    Args:
        store: the features.
        count: how many to give at most; other features come last.
    """
    judged = sorted(((*_worth(one), -one.feature) for one in store if one.contexts), reverse=True)
    chosen: dict[str, Readable] = {}
    for *_, negative in judged:
        if len(chosen) == count:
            break
        one = _described(store.feature(-negative))
        chosen.setdefault(one.word[:4], one)
    return list(chosen.values())


def _worth(feature: StoredFeature) -> tuple[bool, float]:
    top = [context for context in feature.contexts if context.band == 0]
    words = {context.tokens[context.peak] for context in top}
    readable = (
        _DENSITIES[0] < feature.density < _DENSITIES[1]
        and len({context.doc for context in top}) >= 0.6 * len(top)
        and all(map(_is_word, top))
        and 3 <= len({word.lower() for word in words}) <= 8
    )
    of_words = sum(count * mean for token, count, mean in feature.top_tokens if token in words)
    return readable, of_words / (feature.count * feature.mean)


def _is_word(context: Context) -> bool:
    """Whether the peak is a whole word of some length."""
    assert context.text is not None and context.offsets is not None  # the demo's features have texts
    begin, end = context.offsets[context.peak].tolist()
    beside = context.text[max(begin - 1, 0) : begin] + context.text[end : end + 1]
    return end - begin > 4 and context.text[begin:end].isalpha() and not re.search(r"\w", beside)


def _described(feature: StoredFeature) -> Readable:
    spans = tuple(_spans(feature))
    word = Counter(span.token.lower() for span in spans).most_common(1)[0][0]
    return Readable(feature.feature, feature.density, feature.max, word, spans)


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
    assert context.text is not None and context.offsets is not None
    begin, end = context.offsets[context.peak].tolist()
    before, after = context.text[max(begin - _AROUND, 0) : begin], context.text[end : end + _AROUND]
    before = before if begin <= _AROUND else before[before.find(" ") + 1 :]
    after = after if end + _AROUND >= len(context.text) else after[: after.rfind(" ") + 1]
    return Line(context.value, before, context.text[begin:end], after)
