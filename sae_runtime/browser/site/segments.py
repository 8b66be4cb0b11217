"""The text of a context in segments: plain runs, and the tokens on which the feature is active."""

from typing import Any

from sae_runtime.browser.site.shown import TOKEN, bounded, short
from sae_runtime.store.records import Context

RUN = 4000  # characters of a plain run
Segment = str | list[Any]


def segments(context: Context) -> tuple[list[Segment], int]:
    """The segments of a context's text, and which of them has the peak.

    A plain run is a string, an active token a list of its text and its value. A token's own leading blank belongs to
    the run before it. Several tokens of one character, as bytes are, make one segment with their largest value.
    """
    pieces = _named(context) if context.text is None or context.offsets is None else _placed(context)
    made: list[Segment] = []
    peak = 0
    for text, value, is_peak in pieces:
        if value > 0 or is_peak:
            made.append([bounded(text, RUN), short(value)])
            peak = len(made) - 1 if is_peak else peak
        elif made and isinstance(made[-1], str):
            made[-1] += text
        elif text:
            made.append(text)
    return [bounded(one, RUN) if isinstance(one, str) else one for one in made], peak


def _placed(context: Context) -> list[tuple[str, float, bool]]:
    """The pieces of a text: text, value, and whether it is the peak."""
    text, offsets = context.text, context.offsets
    assert text is not None and offsets is not None
    pieces: list[tuple[str, float, bool]] = []
    at = 0
    values = context.values
    shown = set(values.nonzero()[0].tolist()) | {context.peak}
    for number in sorted(shown):
        begin, end = offsets[number].tolist()
        value, is_peak = float(values[number]), number == context.peak
        if begin == end:  # a token without characters, which stands at its place in the text
            pieces += [(text[at:begin], 0.0, False), (context.tokens[number], value, is_peak)]
            at = max(at, begin)
            continue
        if begin < at and pieces:  # another token of the same character
            last = pieces[-1]
            pieces[-1] = (last[0] + text[at:end], max(last[1], value), last[2] or is_peak)
            at = max(at, end)
            continue
        own = text[begin:end]
        begin += len(own) - len(own.lstrip()) if own.strip() else 0
        pieces += [(text[at:begin], 0.0, False), (text[begin:end], value, is_peak)]
        at = end
    return [*pieces, (text[at:], 0.0, False)]


def _named(context: Context) -> list[tuple[str, float, bool]]:
    """The pieces of a context without text: the names of its tokens, with blanks where no name has its own."""
    blank = "" if any(token.startswith(" ") for token in context.tokens) else " "
    pieces: list[tuple[str, float, bool]] = []
    for number, (token, value) in enumerate(zip(context.tokens, context.values.tolist(), strict=True)):
        own = token.lstrip() or token
        gap = blank if number and blank else token[: len(token) - len(own)]
        pieces += [(gap, 0.0, False), (bounded(own, TOKEN), value, number == context.peak)]
    return pieces
