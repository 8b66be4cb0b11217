"""Readable features of a folder of features, and the text where they are most active."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sae_runtime.demo.cards import Line
from sae_runtime.extraction.finding import strongest
from sae_runtime.extraction.stored_features import read_features
from sae_runtime.model import Model

_TOP = 20  # matches by which a feature is judged
_AROUND = 45  # characters shown on either side
_SPANS = 5  # spans of a feature


@dataclass(frozen=True)
class ReadableFeature:
    """A feature that a person can make sense of.

    Attributes:
        number: its number.
        density: share of the tokens on which it is active.
        largest: its largest activation.
        word: the token that most spans mark.
        spans: the text around its strongest matches, each with the activation.
    """

    number: int
    density: float
    largest: float
    word: str
    spans: tuple[Line, ...]


class FeatureTable:
    """A folder that `extract` wrote, by feature.

    Attributes:
        doc: document of each token, [tokens].
        token: id of each token, [tokens].
        l0: active features of each token, [tokens].
        density: share of the tokens on which each feature is active, [d_sae].
    """

    def __init__(self, path: Path, d_sae: int) -> None:
        stored = read_features(path)
        table, features = stored.table(["doc", "token"]), stored.features()
        self.doc: NDArray[np.int32] = table["doc"].to_numpy()
        self.token: NDArray[np.int32] = table["token"].to_numpy()
        feature, self.l0 = features.indices, np.diff(features.indptr)
        order = np.argsort(feature, kind="stable")
        self._rows = np.repeat(np.arange(len(self.doc)), self.l0)[order]
        self._values = features.values[order]
        self._starts = np.searchsorted(feature[order], np.arange(d_sae + 1))
        self.density: NDArray[np.float64] = np.diff(self._starts) / len(self.doc)

    def matches(self, feature: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of the tokens on which a feature is active, and its activations there, the strongest first."""
        part = slice(int(self._starts[feature]), int(self._starts[feature + 1]))
        order = np.argsort(-self._values[part], kind="stable")
        return self._rows[part][order], self._values[part][order]

    def largest_by_doc(self, feature: int, docs: int) -> NDArray[np.float32]:
        """The feature's largest activation in each of the first documents, [docs]; 0 where it is not active."""
        rows, values = self.matches(feature)
        inside = self.doc[rows] < docs
        out = np.zeros(docs, np.float32)
        np.maximum.at(out, self.doc[rows[inside]], values[inside])
        return out


def readable_features(
    table: FeatureTable, model: Model, texts: Sequence[str], count: int, context: int
) -> list[ReadableFeature]:
    """Features that a person can make sense of, the purest first, each with another word.

    A feature is readable if it is active on 0.1 % to 0.5 % of the tokens and its strongest matches come from many
    documents and from several forms of a word (one form would be a token detector). Other features come last. Purity is
    the share of the feature's activations that these forms have. The criteria are our design.

    Args:
        table: the features of the texts.
        model: the deployed model that has the SAE.
        texts: the documents of the table.
        count: the number of features to give.
        context: tokens of a window of the texts.
    """
    judged = []
    for number in np.flatnonzero(table.density).tolist():
        rows, values = table.matches(number)
        forms = Counter(str(model.tokenizer.token(token)) for token in table.token[rows[:_TOP]].tolist())
        readable = (
            1e-3 < table.density[number] < 5e-3
            and len(set(table.doc[rows[:_TOP]].tolist())) >= 0.6 * _TOP
            and all(form.isalpha() and len(form) > 4 for form in forms)
            and 3 <= len(forms) <= 8
        )
        on_forms = np.isin(table.token[rows], table.token[rows[:_TOP]])
        judged.append((readable, float(values[on_forms].sum() / values.sum()), number, forms.most_common(1)[0][0]))
    chosen: dict[str, int] = {}
    for *_, number, word in sorted(judged, reverse=True):
        chosen.setdefault(word[:4], number)
    described = []
    for number in list(chosen.values())[:count]:
        rows, values = table.matches(number)
        nearest = list(dict.fromkeys(table.doc[rows].tolist()))[: 3 * _SPANS]  # some texts repeat each other
        spans = _spans(model, [texts[doc] for doc in nearest], number, context)
        word = Counter(span.token.lower() for span in spans).most_common(1)[0][0]
        described.append(ReadableFeature(number, float(table.density[number]), float(values[0]), word, spans))
    return described


def _spans(model: Model, texts: Sequence[str], feature: int, context: int) -> tuple[Line, ...]:
    """The part of each text around the token on which a feature is strongest; the first parts that differ."""
    spans: dict[tuple[str, str], Line] = {}
    for seen in model.features(texts, context=context):
        if (found := strongest(seen, feature)) is None:
            continue
        begin, end, value = found
        before, after = seen.text[max(begin - _AROUND, 0) : begin], seen.text[end : end + _AROUND]
        # The text begins and ends at whole words.
        before = before if begin <= _AROUND else before[before.find(" ") + 1 :]
        after = after if end + _AROUND >= len(seen.text) else after[: after.rfind(" ") + 1]
        span = Line(value, before, seen.text[begin:end], after)
        spans.setdefault((before[-10:], span.token), span)
    return tuple(sorted(spans.values(), key=lambda span: -span.value)[:_SPANS])
