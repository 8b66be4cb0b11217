"""A feature of a store as a person reads it in a terminal."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import texts
from sae_runtime.core.columns import cut, width
from sae_runtime.core.printable import printable

if TYPE_CHECKING:
    from sae_runtime.store.open_store import Store
    from sae_runtime.store.records import Context, StoredFeature

_BLOCKS = "▁▂▃▄▅▆▇█"
_SHADES = ((255, 243, 205), (255, 224, 138), (255, 196, 77), (247, 148, 29))  # of a token's ground, by its activation
_OTHERS = 8  # features that are named beside one
_NAMES = 13  # columns of the names at the left
_SOURCE = 24  # columns of a context's file and row at most


def lines(store: "Store", one: "StoredFeature", contexts: int) -> Iterator[str]:
    """The lines on a feature.

    Args:
        store: its store.
        one: the feature.
        contexts: contexts of each band to show.
    """
    of = store.description
    whose = {"person": "", "top tokens": " (its top tokens)"}.get(one.label_source or "", f" (from {one.label_source})")
    yield _line(f"feature {one.feature}{f': {one.label}{whose}' if one.label else ' (no label)'}")
    place = ", ".join(filter(None, (of.model, of.hook)))
    yield _line(f"{place}{'; ' if place else ''}{len(store):,} features over {of.tokens:,} {of.per}s")
    yield ""
    if not one.count:
        yield from _named("active on", [f"none of {of.tokens:,} {of.per}s"])
        return
    yield from _named("active on", [f"{100 * one.density:.3g} % of the {of.per}s", f"{one.count:,}"])
    yield from _named("activations", [f"0 {bars(one.histogram[1])} {one.max:.2f}", f"mean {one.mean:.2f}"])
    total = one.count * one.mean
    tokens = [f"{texts.shown_token(text)} {100 * count * mean / total:.0f} %" for text, count, mean in one.top_tokens]
    yield from _named("top tokens", tokens)
    for name, others, word in (("nearest", one.neighbours, "neighbours"), ("together", one.together, "together")):
        known = None if others is None else [_other(store, *other) for other in others[:_OTHERS]]
        yield from _named(name, known, _why(of.left_out, word), between="; ")
    if one.promoted is None or one.suppressed is None:
        yield from _named("logits", None, _why(of.left_out, "promoted"))
    else:
        for name, logits in (("promotes", one.promoted), ("suppresses", one.suppressed)):
            yield from _named(name, [f"{texts.shown_token(text)} {logit:+.2f}" for text, logit in logits])
    yield from _contexts(one, contexts)
    yield from _sources(one.contexts)


def bars(counts: Any) -> str:
    """A histogram as a line of blocks; a bin with a single match is seen too.

    >>> bars([8, 4, 0, 1])
    '█▄ ▁'
    """
    most = max([*counts, 1])
    return "".join(_BLOCKS[max(-(-int(count) * 8 // int(most)) - 1, 0)] if count else " " for count in counts)


def as_json(store: "Store", one: "StoredFeature", contexts: int) -> Mapping[str, Any]:
    """A feature as JSON, with so many contexts of each band."""
    edges, counts = one.histogram
    of = store.description
    pairs = {
        "neighbours": one.neighbours,
        "together": one.together,
        "promoted": one.promoted,
        "suppressed": one.suppressed,
    }
    names = {"neighbours": ("feature", "cosine"), "together": ("feature", "correlation")}
    return {
        "feature": one.feature,
        "label": one.label,
        "label_source": one.label_source,
        "model": of.model,
        "hook": of.hook,
        "density": one.density,
        "count": one.count,
        "mean": one.mean,
        "max": one.max,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "bands": [vars(band) for band in one.bands],
        "top_tokens": [{"text": text, "count": count, "mean": mean} for text, count, mean in one.top_tokens],
        **{
            name: None
            if each is None
            else [dict(zip(names.get(name, ("token", "logit")), pair, strict=True)) for pair in each]
            for name, each in pairs.items()
        },
        "left_out": list(of.left_out),
        "contexts": [_context_as_json(context) for context in _chosen(one.contexts, contexts)],
    }


def marked(
    context: "Context", largest: float, columns: int, *, colour: bool, place: tuple[int, int] | None = None
) -> str:
    """A context on one line of so many columns, its active tokens marked.

    Args:
        context: of a feature.
        largest: the feature's largest activation.
        columns: of the line.
        colour: mark tokens by a ground; otherwise by brackets, the peak by two.
        place: characters of the text that the line must show; None: the peak.
    """
    pieces = _pieces(context)
    middle = next((n for n, one in enumerate(pieces) if (place[0] < one.end if place else one.peak)), 0)
    pieces[middle] = replace(pieces[middle], text=cut(pieces[middle].text, max(columns - 4, 1)))
    shown = [
        one.text if colour or not one.value else f"[[{one.text}]]" if one.peak else f"[{one.text}]" for one in pieces
    ]
    room = max(columns - width(shown[middle]), 0)
    before, after = width("".join(shown[:middle])), width("".join(shown[middle + 1 :]))
    right = max(room // 2, room - before)
    left = _kept(shown[:middle][::-1], room - min(after, right))[::-1]
    parts = [*left, shown[middle], *_kept(shown[middle + 1 :], right)]
    if not colour:
        return cut("".join(parts), columns)
    first = middle - len(left)
    return "".join(
        click.style(part, fg=(0, 0, 0), bg=_shade(one.value / largest)) if one.value and part else part
        for part, one in zip(parts, pieces[first:], strict=False)
    )


def has_colour() -> bool:
    """Whether stdout is a terminal whose user did not refuse colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _shade(share: float) -> tuple[int, int, int]:
    return _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]


@dataclass(frozen=True)
class _Piece:
    """A piece of a context's text: a token, or what stands between two."""

    text: str
    end: int  # the character after it, as Context counts them
    value: float = 0.0
    peak: bool = False


def _pieces(context: "Context") -> list[_Piece]:
    """The text in pieces, blanks as single spaces."""
    pieces: list[_Piece] = []
    values = context.values.tolist()
    if context.text is None or context.offsets is None:
        for number, (token, value) in enumerate(zip(context.tokens, values, strict=True)):
            pieces += [_Piece(" " * (number > 0), 0), _Piece(printable(token), 0, value, number == context.peak)]
        return pieces
    at = 0
    for number, ((begin, end), value) in enumerate(zip(context.offsets.tolist(), values, strict=True)):
        if begin < at:  # another token of the same character
            last = pieces[-1]
            pieces[-1] = replace(last, value=max(last.value, value), peak=last.peak or number == context.peak)
            continue
        text = context.text[begin:end]
        begin += len(text) - len(text.lstrip())  # a token's own blank is no part of what is marked
        pieces.append(_Piece(_blanks(context.text[at:begin]), begin))
        pieces.append(_Piece(_blanks(context.text[begin:end]), end, value, number == context.peak))
        at = end
    return [*pieces, _Piece(_blanks(context.text[at:]), len(context.text))]


def _blanks(text: str) -> str:
    inside = " ".join(text.split())
    return printable(f"{' ' * text[:1].isspace()}{inside}{' ' * (text[-1:].isspace() and bool(inside))}")


def _kept(parts: Sequence[str], columns: int) -> list[str]:
    """The first parts that fit; … stands for those that do not."""
    kept: list[str] = []
    for part in parts:
        if width(part) > columns - 1 and width("".join(parts[len(kept) :])) > columns:
            return [*kept, "…" * (columns > 0)]
        kept.append(part)
        columns -= width(part)
    return kept


def _contexts(one: "StoredFeature", count: int) -> Iterator[str]:
    colour = has_colour()
    room = texts.columns()
    for number, band in enumerate(one.bands):
        inside = [context for context in one.contexts if context.band == number][:count]
        if not inside:
            continue
        yield ""
        name = "largest activations" if number == 0 else f"band {number + 1} of {len(one.bands)}"
        yield _line(f"{name}, {band.low:.2f} to {band.high:.2f}: {band.count:,} in all")
        for context in inside:
            source = cut(printable(_place(context)), _SOURCE)
            text = marked(context, one.max, room - 8 - (width(source) + 2 if source else 0), colour=colour)
            gap = room - 8 - width(click.unstyle(text)) - width(source)
            shown = click.style(source, dim=True) if colour and source else source
            yield f"{context.value:6.2f}  {text}{' ' * gap}{shown}".rstrip()


def _place(context: "Context") -> str:
    """The name of a context's file and its row there."""
    name = Path(context.file).name if context.file else ""
    return ":".join([name, *([] if context.row is None else [str(context.row)])]) if name else ""


def _sources(contexts: Sequence["Context"]) -> Iterator[str]:
    """The files of the contexts with their licences."""
    sources = dict.fromkeys((context.file, context.licence) for context in contexts)
    named = [f"{file or 'a source that is not named'} ({licence or 'licence not given'})" for file, licence in sources]
    if named:
        yield ""
        yield from _named("sources", named)


def _named(name: str, values: Sequence[str] | None, why: str = "", between: str = ", ") -> Iterator[str]:
    """A line of values under a name; None says why there are none."""
    text = between.join(values) if values else ("not known" + (f": {why}" if why else "") if values is None else "none")
    room = texts.columns() - _NAMES
    yield f"{name:<{_NAMES}}{texts.one_line(text, room)}"


def _why(left_out: Sequence[str], word: str) -> str:
    """Why the store lacks something: the end of its sentence about it."""
    return next((sentence.partition(": ")[2] for sentence in left_out if word in sentence.partition(": ")[0]), "")


def _other(store: "Store", feature: int, value: float) -> str:
    label = store.label(feature)[0]
    return f"{feature}{f' {label}' if label else ''} {value:.2f}"


def _chosen(contexts: Sequence["Context"], count: int) -> list["Context"]:
    """The first contexts of each band."""
    taken: dict[int, int] = {}
    kept = []
    for context in contexts:
        taken[context.band] = taken.get(context.band, 0) + 1
        if taken[context.band] <= count:
            kept.append(context)
    return kept


def _context_as_json(context: "Context") -> dict[str, Any]:
    offsets = None if context.offsets is None else context.offsets.tolist()
    return vars(context) | {"values": context.values.tolist(), "offsets": offsets}


def _line(text: str) -> str:
    return texts.one_line(text, texts.columns())
