"""Sparse features of tokens, in compressed rows."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import scipy.sparse

Slots = tuple[NDArray[np.int64], NDArray[np.float32]]  # a run of rows in the layout of the graphs: indices, values


@dataclass(frozen=True, eq=False)
class Features:
    """Which features fire on which token, and how strongly (CSR).

    Token number t (counted over the leading dimensions `shape` of the activations) has the features
    `indices[indptr[t]:indptr[t + 1]]`, ascending, with `values` alongside, all positive.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    d_sae: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return math.prod(self.shape)

    def l0(self) -> NDArray[np.int64]:
        """Active features of each token: [*shape]."""
        return np.diff(self.indptr).reshape(self.shape)

    def row(self, token: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Features and values of one token, by falling value."""
        part = slice(int(self.indptr[token]), int(self.indptr[token + 1]))
        order = np.argsort(-self.values[part], kind="stable")
        return self.indices[part][order], self.values[part][order]

    def to_scipy(self) -> "scipy.sparse.csr_array":
        """As scipy CSR [tokens, d_sae], sharing memory; needs scipy."""
        import scipy.sparse

        return scipy.sparse.csr_array((self.values, self.indices, self.indptr), shape=(len(self), self.d_sae))

    def to_dense(self) -> NDArray[np.float32]:
        """As a dense array [*shape, d_sae]."""
        dense = np.zeros((len(self), self.d_sae), np.float32)
        dense[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.values
        return dense.reshape(*self.shape, self.d_sae)

    def to_slots(self, begin: int, end: int) -> Slots:
        """Tokens begin to end in the layout of the graphs: indices i64 and values f32 [end - begin, widest]."""
        counts = np.diff(self.indptr[begin : end + 1])
        part = slice(int(self.indptr[begin]), int(self.indptr[end]))
        used = np.arange(max(int(counts.max(initial=0)), 1)) < counts[:, None]
        indices, values = np.zeros(used.shape, np.int64), np.zeros(used.shape, np.float32)
        indices[used], values[used] = self.indices[part], self.values[part]
        return indices, values


def from_slots(parts: Iterable[Slots], d_sae: int, shape: tuple[int, ...]) -> Features:
    """Features from runs of rows in the layout of the graphs; a slot with value 0 is unused."""
    counts, indices, values = [], [], []
    for slot_indices, slot_values in parts:
        used = slot_values > 0
        count, ids = used.sum(axis=1), slot_indices[used]
        order = np.argsort(np.repeat(np.arange(len(used)) * d_sae, count) + ids)
        counts.append(count)
        indices.append(ids[order].astype(np.int32))
        values.append(slot_values[used][order])
    indptr = np.concatenate([[0], *[np.asarray(c, np.int64) for c in counts]]).cumsum()
    return Features(indptr, _joined(indices, np.int32), _joined(values, np.float32), d_sae, shape)


def spread(features: Features, tokens: NDArray[np.int64], shape: tuple[int, ...]) -> Features:
    """Features of some of the tokens (ascending) as features of all of them; the others have none."""
    if len(tokens) == math.prod(shape):
        return dataclasses.replace(features, shape=shape)
    counts = np.zeros(math.prod(shape), np.int64)
    counts[tokens] = np.diff(features.indptr)
    indptr = np.concatenate([[0], counts]).cumsum()
    return Features(indptr, features.indices, features.values, features.d_sae, shape)


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])
