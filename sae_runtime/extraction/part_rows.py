"""The rows of one part: its tokens with their features, and its documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features
from sae_runtime.extraction.plan import Part, Plan

Pool = Literal["max", "mean", "sum"]


@dataclass(frozen=True, eq=False)
class PartRows:
    """The tokens and the documents of a part.

    Attributes:
        features: of the tokens, of shape (n,).
        doc: number of each token's document, int32 [n].
        pos: number of each token in its document, int32 [n].
        own: whether the token is the text's own, bool [n]; special tokens are not, and pooling leaves them out.
        token: id of each token, int32 [n]; None: not known.
        begin, end: its first character in the document and the one after its last, int32 [n]; None: not known.
        documents: columns of documents/ by name, without those of features; None: documents are not known. `doc` is
            one of them, and ascends.
    """

    features: Features
    doc: NDArray[np.int32]
    pos: NDArray[np.int32]
    own: NDArray[np.bool_]
    token: NDArray[np.int32] | None = None
    begin: NDArray[np.int32] | None = None
    end: NDArray[np.int32] | None = None
    documents: Mapping[str, Sequence[Any] | NDArray[Any]] | None = None


class Source(Protocol):
    """What an extraction reads: it plans its parts, and makes the rows of one, always the same. It pickles."""

    def plan(self) -> Plan:
        """The facts that decide the rows, and the parts; it reads all of the input."""

    def rows(self, part: Part) -> PartRows:
        """The rows of a part of the plan; ValueError if the input changed since."""

    def vocabulary(self) -> Sequence[str | None] | None:
        """The name of each token; None: not known."""


def pooled(rows: PartRows, how: Pool) -> Features:
    """The features of each document, over its own tokens: of shape (documents,). A mean is at least the least float32.

    Raises:
        ValueError: a sum is too large for float32.

    >>> indices, values = np.array([2, 2, 5], np.int32), np.array([1, 3, 4], np.float32)
    >>> features = Features(np.array([0, 1, 3]), indices, values, d_sae=8, shape=(2,))
    >>> zeros = np.zeros(2, np.int32)
    >>> rows = PartRows(features, zeros, zeros, np.ones(2, bool), documents={"doc": np.array([0], np.int32)})
    >>> pooled(rows, "mean").indices.tolist(), pooled(rows, "mean").values.tolist()
    ([2, 5], [2.0, 2.0])
    """
    assert rows.documents is not None  # callers check it
    numbers, d_sae = np.asarray(rows.documents["doc"]), rows.features.d_sae
    of_token = np.searchsorted(numbers, rows.doc)
    counts = np.diff(rows.features.indptr)
    is_own = np.repeat(rows.own, counts)
    key = (np.repeat(of_token, counts) * d_sae + rows.features.indices)[is_own]
    values = rows.features.values[is_own].astype(np.float64)
    order = np.argsort(key, kind="stable")
    key, values = key[order], values[order]
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
    key = key[begins]
    if len(begins):
        values = (np.maximum if how == "max" else np.add).reduceat(values, begins)
    if how == "mean":
        values = values / np.bincount(of_token[rows.own], minlength=len(numbers))[key // d_sae]
    float32 = np.finfo(np.float32)
    if len(values) and values.max() > float32.max:
        number = numbers[key[values.argmax()] // d_sae]
        raise ValueError(f"a feature of document {number} adds up to more than float32 holds; pool by max or mean")
    values = np.maximum(values, float32.smallest_subnormal)  # 0 would mean that it is not active
    indptr = np.searchsorted(key, np.arange(len(numbers) + 1) * d_sae)
    return Features(indptr, (key % d_sae).astype(np.int32), values.astype(np.float32), d_sae, (len(numbers),))
