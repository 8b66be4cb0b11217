"""What a store says of one feature, as plain values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Context:
    """A place of the corpus where a feature is active.

    Attributes:
        band: number of the quantile band, 0 for the largest activations.
        value: activation on the token in the middle, the peak.
        doc: number of the document in the features folder.
        tokens: the tokens around the peak, as the text has them; their names where the store has no texts. For a store
            of documents, the document's beginning as one token.
        ids: of these tokens in the vocabulary, int32; -1: unknown.
        values: activation of the feature on each of these tokens, float32; 0 where it is not active.
        offsets: first character of each token in `text` and the one after its last, int32 [tokens, 2]; None without
            texts.
        peak: which of the tokens is the peak.
        text: the text of these tokens; None where the features were extracted without texts.
        begin: first character of the text in its document; None without texts.
        end: the character after the last one.
        file: the file that the document is from; None where that is not known.
        row: number of the document in its file, blank ones counted.
        id: the document's id, where the file has ids.
        licence: of the document, where it was given.
    """

    band: int
    value: float
    doc: int
    tokens: list[str]
    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    offsets: NDArray[np.int32] | None
    peak: int
    text: str | None
    begin: int | None
    end: int | None
    file: str | None
    row: int | None
    id: int | str | None
    licence: str | None


@dataclass(frozen=True)
class Band:
    """A quantile band of the active values of a feature: its smallest and largest value, and how many lie in it."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, eq=False)
class StoredFeature:
    """What a store knows of a feature.

    Attributes:
        feature: its number.
        label: what people know it by; its top tokens where nobody gave a label; None for a feature without tokens.
        label_source: "person", the name of what the label was imported from, or "top tokens"; None without a label.
        density: share of the tokens on which it is active; of a store of documents, of the documents.
        count: number of these tokens.
        mean: mean of the activations that are not 0; 0 for a feature that is never active.
        max: largest activation.
        histogram: edges float64 [bins + 1] of equal bins from 0 to `max`, and the matches in each, int64 [bins].
        bands: the quantile bands, the one of the largest values first; none for a feature that is never active.
        top_tokens: text, count and mean activation of the tokens with the largest sum of activations.
        neighbours: features with the most similar decoder rows, and the cosine; None where no bundle was given.
        together: features that are active on the same tokens, and the phi correlation; None where not counted.
        promoted: tokens whose logits a larger activation raises most, and by how much for an activation of 1; None
            where the bundle's stats do not know.
        suppressed: tokens whose logits it lowers most.
        contexts: the largest ones of each band, by band, then by falling value.
    """

    feature: int
    label: str | None
    label_source: str | None
    density: float
    count: int
    mean: float
    max: float
    histogram: tuple[NDArray[np.float64], NDArray[np.int64]]
    bands: list[Band]
    top_tokens: list[tuple[str, int, float]]
    neighbours: list[tuple[int, float]] | None
    together: list[tuple[int, float]] | None
    promoted: list[tuple[str, float]] | None
    suppressed: list[tuple[str, float]] | None
    contexts: list[Context]
