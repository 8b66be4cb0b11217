"""Which features of a Parquet file of features can be read, and the text where they fire most."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

_TOP = 20  # matches by which a feature is judged
_AROUND = 7  # tokens shown on either side


@dataclass(frozen=True)
class Span:
    """A piece of text and the token in it on which a feature fires."""

    before: str
    token: str
    after: str
    value: float


@dataclass(frozen=True)
class ReadableFeature:
    """A feature, how often and how strongly it fires, the word it fires on most, and where it fires most strongly."""

    number: int
    density: float
    largest: float
    word: str
    spans: tuple[Span, ...]


class FeatureTable:
    """A Parquet file that `extract` wrote, by feature. `doc` and `token` are [tokens], matches are sorted by feature."""

    def __init__(self, path: Path, d_sae: int) -> None:
        table = pyarrow.parquet.read_table(path)
        self.doc: NDArray[np.int32] = table["doc"].to_numpy()
        self.token: NDArray[np.int32] = table["token"].to_numpy()
        indices, values = (table[name].combine_chunks() for name in ("indices", "values"))
        feature = indices.values.to_numpy()
        self.l0 = np.diff(indices.offsets.to_numpy())
        order = np.argsort(feature, kind="stable")
        self._rows = np.repeat(np.arange(len(self.doc)), self.l0)[order]
        self._values = values.values.to_numpy()[order]
        self._starts = np.searchsorted(feature[order], np.arange(d_sae + 1))
        self.density: NDArray[np.float64] = np.diff(self._starts) / len(self.doc)

    def matches(self, feature: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens on which a feature fires and its values there, the strongest first."""
        part = slice(int(self._starts[feature]), int(self._starts[feature + 1]))
        order = np.argsort(-self._values[part], kind="stable")
        return self._rows[part][order], self._values[part][order]

    def largest_by_doc(self, feature: int, docs: int) -> NDArray[np.float32]:
        """The feature's largest value in each of the first documents, 0 where it is silent: [docs]."""
        rows, values = self.matches(feature)
        inside = self.doc[rows] < docs
        out = np.zeros(docs, np.float32)
        np.maximum.at(out, self.doc[rows[inside]], values[inside])
        return out


def readable_features(table: FeatureTable, tokenizer: Any, count: int) -> list[ReadableFeature]:
    """Features that a person can make sense of, the strongest first.

    Those that fire on 0.1 % to 1 % of the tokens, and whose strongest matches come from many documents and from a few
    forms of a word: a single form would be a token detector, many forms are hard to judge from six lines.
    """
    found = []
    for number in np.flatnonzero((table.density > 1e-3) & (table.density < 1e-2)):
        rows, values = (part[:_TOP] for part in table.matches(int(number)))
        forms = Counter(tokenizer.convert_ids_to_tokens(int(token)) for token in table.token[rows])
        many_documents = len(set(table.doc[rows].tolist())) >= 0.6 * len(rows)
        words = all(form.isalpha() and len(form) > 2 for form in forms)
        if many_documents and words and 3 <= len(forms) <= 8:
            found.append((float(values.mean()), int(number), forms.most_common(1)[0][0]))
    found.sort(reverse=True)
    chosen: dict[str, tuple[int, str]] = {}  # one feature a word
    for _, number, word in found:
        chosen.setdefault(word[:4], (number, word))
    return [_described(table, tokenizer, number, word) for number, word in list(chosen.values())[:count]]


def _described(table: FeatureTable, tokenizer: Any, number: int, word: str) -> ReadableFeature:
    rows, values = table.matches(number)
    spans: dict[str, Span] = {}
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        span = _span(table, tokenizer, row, value)
        spans.setdefault(span.before[-30:] + span.token, span)
        if len(spans) == 5:
            break
    return ReadableFeature(number, float(table.density[number]), float(values[0]), word, tuple(spans.values()))


def _span(table: FeatureTable, tokenizer: Any, row: int, value: float) -> Span:
    inside = np.flatnonzero(table.doc[max(row - _AROUND, 0) : row + _AROUND + 1] == table.doc[row]) + max(
        row - _AROUND, 0
    )
    before, after = table.token[inside[inside < row]], table.token[inside[inside > row]]
    while len(after) and tokenizer.convert_ids_to_tokens(int(after[-1])).startswith("##"):
        after = after[:-1]  # half a word
    return Span(tokenizer.decode(before), tokenizer.decode([int(table.token[row])]), tokenizer.decode(after), value)
