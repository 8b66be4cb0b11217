"""How texts of several callers are computed together: their features, the outputs of a host, their vectors."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit
from sae_runtime.core.features import Features
from sae_runtime.core.gates import Gate
from sae_runtime.deployed.notices import AssumedPoolingWarning, LeftOutWarning
from sae_runtime.deployed.text_features import TextFeatures
from sae_runtime.model import Model
from sae_runtime.serve.errors import Invalid
from sae_runtime.serve.row_lane import Piece
from sae_runtime.serve.tensors import Arrays
from sae_runtime.text.tokens import Tokens

_CHARACTERS, _MOST_TOKENS = 4, 512  # of a token, and of a text that costs more than others; both about


@dataclass(frozen=True)
class Work:
    """Texts, with the edits in plain numbers by SAE and the gate of each."""

    texts: list[str]
    edits: Sequence[Mapping[str, Sequence[Edit]]] = ()
    gates: Sequence[Gate] = ()


@dataclass(frozen=True)
class Reading:
    """Windows that wait to be read, and the number of each one's text; of the SAE whose features are wanted."""

    texts: Sequence[str]
    windows: Sequence[Sequence[Tokens]]
    ids: Sequence[NDArray[np.int64]]
    numbers: Sequence[int]
    sae: str | None


class _OfTexts:
    """What the lanes of texts share. A unit is a text, and costs its tokens."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.tile = model.tokens_at_once

    def kind(self, work: Work) -> Hashable:
        """Texts of all callers share a batch."""
        return None

    def costs(self, work: Work) -> Sequence[int]:
        """About the tokens of each text."""
        return [min(len(text) // _CHARACTERS + 2, _MOST_TOKENS) for text in work.texts]

    def whole(self, work: Work, parts: Sequence[Any]) -> Any:
        """The answers of all texts."""
        return [one for part in parts for one in part]


class FeaturesOfTexts:
    """Features of texts of several callers, read at once. A unit is a window."""

    def __init__(self, model: Model, saw: Callable[..., None]) -> None:
        self._model, self._saw = model, saw
        self.tile = model.tokens_at_once

    def kind(self, work: Reading) -> Hashable:
        """Windows of all callers share a batch."""
        return None

    def costs(self, work: Reading) -> Sequence[int]:
        """The tokens of each window."""
        return [len(ids) for ids in work.ids]

    def run(self, pieces: Sequence[Piece]) -> Sequence[list[dict[str, Features]]]:
        """The features of the windows of each piece, by SAE."""
        ids = [one for work, begin, end in pieces for one in work.ids[begin:end]]
        numbers = [one for work, begin, end in pieces for one in work.numbers[begin:end]]
        return _divided(self._model.read(ids, texts=numbers), pieces)

    def whole(self, work: Reading, parts: Sequence[list[dict[str, Features]]]) -> tuple[list[TextFeatures], str | None]:
        """The features of the texts, and the SAE that is wanted."""
        found = iter([one for part in parts for one in part])
        seen = [
            self._model.features_of(text, windows, [next(found) for _ in windows])
            for text, windows in zip(work.texts, work.windows, strict=True)
        ]
        self._saw(seen)
        return seen, work.sae


class RunsOfTexts(_OfTexts):
    """Outputs of the host for texts of several callers."""

    def __init__(self, model: Model, by_token: Mapping[str, bool]) -> None:
        super().__init__(model)
        self._by_token = by_token

    def run(self, pieces: Sequence[Piece]) -> Sequence[list[dict[str, NDArray[Any]]]]:
        """The outputs of each text of each piece."""
        texts, edits, gates = _flat(pieces)
        with _quiet():
            return _divided(self._model.run(texts, edits, gate=gates), pieces)

    def whole(self, work: Work, parts: Sequence[Any]) -> Arrays:
        """The outputs of all texts, with the bounds of each text's tokens."""
        each: list[dict[str, NDArray[Any]]] = super().whole(work, parts)
        if not each:
            raise Invalid("no texts were given; give one")
        arrays = {
            name: (np.concatenate if by_token else np.stack)([one[name] for one in each])
            for name, by_token in self._by_token.items()
        }
        lengths = [len(one[name]) for one in each for name in [n for n, b in self._by_token.items() if b][:1]]
        return {**arrays, "row_splits": np.cumsum([0, *lengths])} if lengths else arrays


class VectorsOfTexts(_OfTexts):
    """Vectors of texts of several callers."""

    def run(self, pieces: Sequence[Piece]) -> Sequence[NDArray[np.float32]]:
        """The vectors of each piece."""
        texts, edits, gates = _flat(pieces)
        with _quiet():
            return _divided(self._model.embed(texts, edits, gate=gates), pieces)

    def whole(self, work: Work, parts: Sequence[Any]) -> Arrays:
        """The vectors of all texts."""
        return {"embedding": np.concatenate(parts)}


def _flat(pieces: Sequence[Piece]) -> tuple[list[str], Any, list[Gate]]:
    """The texts, edits and gates of pieces."""
    texts = [text for work, begin, end in pieces for text in work.texts[begin:end]]
    edits = [one for work, begin, end in pieces for one in work.edits[begin:end]]
    gates = [one for work, begin, end in pieces for one in work.gates[begin:end]]
    return texts, edits if any(edits) else (), gates


def _divided(answers: Any, pieces: Sequence[Piece]) -> list[Any]:
    """The answers of each piece."""
    ends = np.cumsum([0, *(end - begin for _, begin, end in pieces)]).tolist()
    return [answers[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings for a person: nobody reads them here, and a server says how it embeds in its metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        warnings.simplefilter("ignore", AssumedPoolingWarning)
        yield
