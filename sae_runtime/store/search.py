"""Features of a store by words: in their labels, in the tokens they are strongest on, and in their contexts."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.labels import shown
from sae_runtime.store.records import Context, StoredFeature

if TYPE_CHECKING:
    from sae_runtime.store.open_store import Store

_PHRASE = re.compile(r'"([^"]*)"|(\S+)')
_EDGE = r"[^\pL\pN\pM_]"  # neither letter, digit nor accent; the syntax is RE2's
_MARKS = ("##", "Ġ", "▁")  # by which tokenizers say that a token begins or continues a word
_CLOSER = 60  # features, at least, whose contexts are looked at for the place of the words in them

# What a place of a word is worth. Every value of a line is larger than every value of the lines below it.
_LABEL = 5.0
_LABEL_WORD = 3.0
_TOKEN = 2.0  # and up to 2 more by the share of the feature's activation on these tokens
_AT_PEAK = 1.5  # and up to 0.4 more by the share of contexts
_LABEL_PART, _TOKEN_PART = 1.2, 1.0  # and up to 0.2 more
_CONTEXT_WORD = 0.5  # and up to 0.4 more
_CONTEXT_PART = 0.1  # likewise


@dataclass(frozen=True, eq=False)
class Hit:
    """A feature that a search found.

    Attributes:
        feature: its number.
        label: as in `StoredFeature`.
        label_source: as in `StoredFeature`.
        score: how well it matches, from 0 to 5.
        places: where the words stand, the best place first: "label", "top tokens", "at the peak", "in a context"; with
            "part of" before it where only parts of words match.
        context: the context with the words, or else the one with the largest activation; None if there is none.
        place: first character of a word in the context's text and the one after its last; None if it has none.
    """

    feature: int
    label: str | None
    label_source: str | None
    score: float
    places: tuple[str, ...]
    context: Context | None
    place: tuple[int, int] | None


def search(store: "Store", query: str, limit: int = 20) -> list[Hit]:
    """The features of a store that words are about, the best first.

    A feature must have every word. Case does not count, and nothing in a word is a pattern. Words in double quotes are
    a phrase.

    Args:
        store: the store.
        query: words and phrases.
        limit: features at most.

    Raises:
        ValueError: the query has no word, or `limit` is below 1.

    >>> from sae_runtime import open_store
    >>> search(open_store(store_path), "no such words")
    []
    """
    words = terms(query)
    if limit < 1:
        raise ValueError(f"a search gives 1 feature or more, got {limit}")
    found = [_Found(store, word) for word in words]
    _read_contexts(store, found)
    seen: dict[int, StoredFeature] = {}
    for feature in _best(found, max(3 * limit, _CLOSER)):
        if any(one.scores()[feature] < _AT_PEAK for one in found):
            seen[feature] = store.feature(feature)
            for one in found:
                one.look_at(seen[feature])
    return [_hit(seen.get(feature) or store.feature(feature), found) for feature in _best(found, limit)]


def _best(found: Sequence["_Found"], count: int) -> list[int]:
    """The features that have every term, the best first; the score of a feature is that of its worst term."""
    scores = np.min([one.scores() for one in found], axis=0)
    numbers = np.flatnonzero(scores > 0)
    best: list[int] = numbers[np.lexsort((numbers, -scores[numbers]))][:count].tolist()
    return best


def terms(query: str) -> list[str]:
    """The words and phrases of a query, folded.

    >>> terms('Open "the  File"')
    ['open', 'the file']

    Raises:
        ValueError: there are none.
    """
    if not query.isprintable() and re.search("[\ud800-\udfff]", query):
        raise ValueError(f"a search is for text, got bytes that are none: {shown(query)}")
    parts = [" ".join((phrase or word).split()) for phrase, word in _PHRASE.findall(query)]
    words = list(dict.fromkeys(_folded(part.replace('"', "")) for part in parts))
    if not any(words):
        raise ValueError(f"a search needs a word, got {shown(query)}")
    return [word for word in words if word]


def pattern(term: str) -> str:
    """A regular expression that matches a folded term and nothing else, in Python's syntax and RE2's.

    >>> re.findall(pattern("a.b"), "A.B axb")
    ['A.B']
    """
    forms = dict.fromkeys(unicodedata.normalize(form, term) for form in ("NFC", "NFD"))
    bodies = [r"\s+".join(map(_spelled, form.split())) for form in forms]
    return f"(?i:{'|'.join(bodies)})"


def _spelled(word: str) -> str:
    """A pattern of a folded word, in which a letter that folds to several may stand for these: ß, İ, ﬁ."""
    folds = _folds()
    parts = re.split(f"({'|'.join(map(re.escape, folds))})", word)
    return "".join(f"(?:{re.escape(one)}|[{folds[one]}])" if one in folds else re.escape(one) for one in parts)


@functools.cache
def _folds() -> dict[str, str]:
    """The letters that fold to each text of several letters, the longest texts first."""
    found: dict[str, str] = {}
    for letter in map(chr, range(0x80, 0xFB20)):  # Unicode has none of them elsewhere
        if len(fold := letter.casefold()) > 1:
            found[fold] = found.get(fold, "") + letter
    return dict(sorted(found.items(), key=lambda each: -len(each[0])))


class _Found:
    """Where a term stands: for each feature what its places are worth, float64 [d_sae]."""

    def __init__(self, store: "Store", term: str) -> None:
        import pyarrow
        import pyarrow.compute as pc

        self.pattern = pattern(term)
        self.expression = re.compile(self.pattern)
        self.has_peaks = store.description.per == "token"  # a document is its own context
        self.whole = f"(?:^|{_EDGE}){self.pattern}(?:$|{_EDGE})"
        d_sae = len(store)
        self.label, self.token, self.at_peak, self.context = (np.zeros(d_sae) for _ in range(4))
        labels = store.labels
        if len(labels):
            features = np.fromiter(labels, np.int64, len(labels))
            texts = pyarrow.array(list(labels.values()), pyarrow.string())
            self.label[features] = np.select(
                [
                    np.array([_folded(text) == term for text in labels.values()]),
                    _matches(pc, texts, self.whole),
                    _matches(pc, texts, self.pattern),
                ],
                [_LABEL, _LABEL_WORD, _LABEL_PART],
            )
        self._read_tokens(store, term, pc)
        # Contexts with the word, and those with a part of a word like it, int64 [d_sae].
        self.whole_words, self.parts = np.zeros(d_sae, np.int64), np.zeros(d_sae, np.int64)

    def _read_tokens(self, store: "Store", term: str, pc: Any) -> None:
        table = store.table(["top_tokens", "count", "mean"])
        lists = table["top_tokens"].combine_chunks()
        tokens = lists.flatten()
        if not len(tokens):
            return
        of = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        mass = tokens.field("count").to_numpy(zero_copy_only=False) * tokens.field("mean").to_numpy(
            zero_copy_only=False
        )
        whole = table["count"].to_numpy() * table["mean"].to_numpy()
        names = tokens.field("text").dictionary_encode()
        texts = names.dictionary.to_pylist()
        number = names.indices.to_numpy(zero_copy_only=False)
        equal = np.array([_folded(_bare(text)) == term for text in texts])[number]
        part = _matches(pc, names.dictionary, self.pattern)[number]
        for chosen, least, more in ((part, _TOKEN_PART, 0.2), (equal, _TOKEN, 2.0)):
            sums = np.bincount(of[chosen], mass[chosen], minlength=len(store))
            share = np.minimum(sums / np.maximum(whole, np.finfo(float).tiny), 1)
            self.token = np.where(sums > 0, least + more * share, self.token)

    def look_at(self, stored: StoredFeature) -> None:
        """Count the contexts whose peak is in the word: a word of several tokens is no top token."""
        peaks = self.has_peaks and sum(_at_peak(context, self.expression, whole=True) for context in stored.contexts)
        if peaks:
            self.at_peak[stored.feature] = _AT_PEAK + 0.4 * peaks / len(stored.contexts)

    def scores(self) -> NDArray[np.float64]:
        """The worth of the best place of each feature; 0 where the term stands nowhere."""
        best: NDArray[np.float64] = np.max([self.label, self.token, self.at_peak, self.context], axis=0)
        return best

    def places(self, feature: int) -> list[tuple[float, str]]:
        """The places of a feature that has the term, with their worth."""
        label, token = float(self.label[feature]), float(self.token[feature])
        names = [
            (label, "label" if label > _LABEL_PART else "part of a word of the label"),
            (token, "top tokens" if token >= _TOKEN else "part of a top token"),
            (float(self.at_peak[feature]), "at the peak"),
            (float(self.context[feature]), "in a context" if self.whole_words[feature] else "part of a word"),
        ]
        return [(worth, name) for worth, name in names if worth]


def _read_contexts(store: "Store", found: Sequence[_Found]) -> None:
    """Look for the terms in the texts of all contexts."""
    import pyarrow.compute as pc

    total = np.zeros(len(store), np.int64)
    for batch in store.context_batches(["feature", "text"]):
        features, texts = batch["feature"].to_numpy(), batch["text"]
        total += np.bincount(features, minlength=len(store))
        for one in found:
            rows = np.flatnonzero(_matches(pc, texts, one.pattern))
            whole = rows[_matches(pc, texts.take(rows), one.whole)]
            one.parts += np.bincount(features[rows], minlength=len(store))
            one.whole_words += np.bincount(features[whole], minlength=len(store))
    for one in found:
        for matches, least in ((one.parts, _CONTEXT_PART), (one.whole_words, _CONTEXT_WORD)):
            one.context = np.where(matches > 0, least + 0.4 * matches / np.maximum(total, 1), one.context)


def _hit(stored: StoredFeature, found: Sequence[_Found]) -> Hit:
    feature = stored.feature
    for one in found:
        one.look_at(stored)
    places = sorted((place for one in found for place in one.places(feature)), key=lambda place: -place[0])
    best = max(stored.contexts, key=lambda context: _fit(context, found), default=None)
    score = min(float(one.scores()[feature]) for one in found)
    names = tuple(dict.fromkeys(name for _, name in places))
    return Hit(
        feature, stored.label, stored.label_source, score, names, best, None if best is None else _nearest(best, found)
    )


def _nearest(context: Context, found: Sequence[_Found]) -> tuple[int, int] | None:
    """Where the term that is nearest to the peak stands in a context."""
    matches = [match for one in found for match in one.expression.finditer(context.text or "")]
    begin = 0 if context.offsets is None else int(context.offsets[context.peak, 0])
    nearest = min(matches, key=lambda match: max(match.start() - begin, begin - match.end()), default=None)
    return nearest and nearest.span()


def _fit(context: Context, found: Sequence[_Found]) -> tuple[int, int, float]:
    """How many of the terms a context has, at its peak and in all; then its activation."""
    inside = sum(one.expression.search(context.text or "") is not None for one in found)
    return sum(_at_peak(context, one.expression, whole=False) for one in found), inside, context.value


def _at_peak(context: Context, expression: re.Pattern[str], *, whole: bool) -> bool:
    """Whether the peak of a context is in a match: in one that is a whole word, if asked."""
    if context.text is None or context.offsets is None:
        return False
    begin, end = context.offsets[context.peak].tolist()
    matches = (match for match in expression.finditer(context.text) if match.start() < end and begin < match.end())
    return any(not whole or _is_word(context.text, match) for match in matches)


def _is_word(text: str, found: re.Match[str]) -> bool:
    around = text[max(found.start() - 1, 0) : found.start()] + text[found.end() : found.end() + 1]
    return not any(character == "_" or unicodedata.category(character)[0] in "LNM" for character in around)


def _matches(pc: Any, texts: Any, expression: str) -> NDArray[np.bool_]:
    found = pc.fill_null(pc.match_substring_regex(texts, expression), False)
    matches: NDArray[np.bool_] = found.to_numpy(zero_copy_only=False)
    return matches


def _bare(token: str) -> str:
    """A token's name without the marks of its tokenizer."""
    for mark in _MARKS:
        token = token.removeprefix(mark)
    return token.strip()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
