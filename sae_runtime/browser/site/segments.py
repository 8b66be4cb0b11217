"""The text of a context in segments: plain runs, and the tokens on which the feature is active."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sae_runtime.browser.site.active_tokens import active_tokens
from sae_runtime.browser.site.shown import TOKEN, bounded, short
from sae_runtime.store.records import Context

RUN = 4000  # characters of a plain run, and of all runs and tokens of a context together
Segment = str | list[Any]


@dataclass(frozen=True)
class _Piece:
    text: str
    value: float = 0.0
    peak: bool = False


def segments(context: Context, name_of: Callable[[int], str]) -> tuple[list[Segment], int]:
    """The segments of a context's text, and which of them has the peak.

    A plain run is a string, an active token a list of its text and its value. A token's own leading blank belongs to
    the run before it. Several tokens of one character, as bytes are, make one segment with their largest value. Of a
    text that is too long to show, what is far from the peak is left out.

    Args:
        context: of a store.
        name_of: gives the name of a token by its id, for tokens without characters.
    """
    pieces = _named(context) if context.text is None or context.offsets is None else _placed(context, name_of)
    made: list[Segment] = []
    peak = 0
    for piece in _near_peak(pieces):
        if piece.value > 0 or piece.peak:
            made.append([bounded(piece.text, RUN), short(piece.value)])
            peak = len(made) - 1 if piece.peak else peak
        elif made and isinstance(made[-1], str):
            made[-1] += bounded(piece.text, RUN)
        elif piece.text:
            made.append(bounded(piece.text, RUN))
    return made, peak


def _placed(context: Context, name_of: Callable[[int], str]) -> list[_Piece]:
    """The pieces of a context with a text."""
    text = context.text
    assert text is not None
    pieces: list[_Piece] = []
    done = 0  # the first character that is in no piece
    for token in active_tokens(context):
        is_peak, end = token.number == context.peak, max(token.end, done)
        if token.begin == token.end:  # it has no characters, as [CLS], and stands at its place in the text
            begin = max(token.begin, done)
            name = name_of(int(context.ids[token.number]))
            pieces += [_Piece(text[done:begin]), _Piece(name, token.value, is_peak)]
            done = begin
        elif token.begin < done and pieces:  # another token of the same character
            last = pieces[-1]
            pieces[-1] = _Piece(last.text + text[done:end], max(last.value, token.value), last.peak or is_peak)
            done = end
        else:
            own = text[token.begin : end]
            begin = token.begin + (len(own) - len(own.lstrip()) if own.strip() else 0)
            pieces += [_Piece(text[done:begin]), _Piece(text[begin:end], token.value, is_peak)]
            done = end
    return [*pieces, _Piece(text[done:])]


def _named(context: Context) -> list[_Piece]:
    """The pieces of a context without text: the names of its tokens, with blanks where no name has its own."""
    has_blanks = any(token.startswith(" ") for token in context.tokens)
    pieces: list[_Piece] = []
    for number, (token, value) in enumerate(zip(context.tokens, context.values.tolist(), strict=True)):
        own = token.lstrip() or token
        gap = token[: len(token) - len(own)] if has_blanks else " " * (number > 0)
        pieces += [_Piece(gap), _Piece(bounded(own, TOKEN), value, number == context.peak)]
    return pieces


def _near_peak(pieces: list[_Piece]) -> list[_Piece]:
    """The pieces around the peak that have RUN characters together; an ellipsis stands for those left out."""
    if sum(len(piece.text) for piece in pieces) + 20 * len(pieces) <= 2 * RUN:
        return pieces
    peak = next(number for number, piece in enumerate(pieces) if piece.peak)
    first = last = peak
    room = RUN
    while room > 0 and (first > 0 or last < len(pieces) - 1):
        for beside in (first - 1, last + 1):
            if 0 <= beside < len(pieces) and room > 0:
                first, last = min(first, beside), max(last, beside)
                room -= len(pieces[beside].text) + 20  # a value has digits and brackets
    shown = [_shortened(piece, end=number > peak) for number, piece in enumerate(pieces[first : last + 1], start=first)]
    return [*([_Piece("…")] * (first > 0)), *shown, *([_Piece("…")] * (last < len(pieces) - 1))]


def _shortened(piece: _Piece, *, end: bool) -> _Piece:
    """A plain run without the end that is far from the peak, where it is long."""
    if piece.value > 0 or piece.peak or len(piece.text) <= RUN // 2:
        return piece
    return _Piece(piece.text[: RUN // 2] + "…" if end else "…" + piece.text[-RUN // 2 :])
