"""Sentences of a corpus, for examples: whole ones where the contexts of a store have them."""

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator

from sae_runtime.browser.site.shown import bounded
from sae_runtime.store.records import Context

MOST = 60
_SHORTEST, _LONGEST = 40, 240  # characters
_FEWEST = 5  # words
_BETWEEN = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-ZÀ-ÞА-Я0-9])")  # an end, blanks, a beginning
_END = re.compile(r"[.!?][\"')\]]*$")
_LOOKED_AT = 5  # contexts of a feature


class Sentences:
    """Chooses texts: distinct ones, spread evenly over all that `look_at` gets, always the same ones.

    A text is chosen by its hash, which is as good as by chance.
    """

    def __init__(self) -> None:
        """Begin with none: whole sentences, and other pieces of texts."""
        self._whole: list[tuple[int, str]] = []
        self._pieces: list[tuple[int, str]] = []

    def look_at(self, contexts: Iterable[Context]) -> None:
        """Take the texts of the first contexts of a feature."""
        for number, context in enumerate(contexts):
            if number == _LOOKED_AT:
                return
            if context.text is None:
                continue
            for text, is_whole in _pieces(context.text, begins=context.begin == 0):
                _keep(self._whole if is_whole else self._pieces, text)

    @property
    def chosen(self) -> list[str]:
        """At most MOST texts, whole sentences first."""
        kept: dict[str, str] = {}
        for texts in (self._whole, self._pieces):
            for _, text in sorted(texts, reverse=True):
                kept.setdefault(text.casefold(), text)
        return list(kept.values())[:MOST]


def _pieces(text: str, *, begins: bool) -> Iterator[tuple[str, bool]]:
    """The sentences of a text, and whether each is whole; of one without, its beginning.

    Args:
        text: of a context.
        begins: whether its document begins with it.
    """
    text = " ".join(text.split())
    parts = _BETWEEN.split(text)
    for number, part in enumerate(parts):
        if _SHORTEST <= len(part) <= _LONGEST and part.count(" ") >= _FEWEST - 1:
            yield bounded(part, _LONGEST), (number > 0 or begins) and _END.search(part) is not None
    if len(parts) == 1 and len(text) > _LONGEST:
        yield bounded(text[:_LONGEST].rsplit(" ", 1)[0], _LONGEST), False


def _keep(texts: list[tuple[int, str]], text: str) -> None:
    """Add a text to the heap of those with the smallest hashes."""
    rank = -int.from_bytes(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest(), "big")
    if len(texts) == MOST and rank <= texts[0][0]:
        return
    if any(text.casefold() == known.casefold() for _, known in texts):
        return
    (heapq.heapreplace if len(texts) == MOST else heapq.heappush)(texts, (rank, text))
