"""Sparse features of tokens in compressed rows (CSR), and operations on them."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.core.arrays import as_array
from sae_runtime.core.slots import Slots

if TYPE_CHECKING:
    import scipy.sparse

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """The active features of each token, and their activations.

    Token number t, counted over the leading dimensions `shape` of the activations, has the features
    `indices[indptr[t]:indptr[t + 1]]`, which ascend. `values` has their activations, all positive.

    >>> indices, values = np.array([1, 4, 2], np.int32), np.array([5, 7, 6], np.float32)
    >>> Features(np.array([0, 2, 3]), indices, values, d_sae=8, shape=(2,))
    Features(2 tokens, 3 matches, L0 1.50, d_sae 8)
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    d_sae: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __repr__(self) -> str:
        l0 = len(self.values) / max(len(self), 1)
        return f"Features({len(self):,} tokens, {len(self.values):,} matches, L0 {l0:.2f}, d_sae {self.d_sae:,})"

    def check(self) -> None:
        """Check the arrays of features, which a caller may have made.

        Raises:
            ValueError: the arrays do not fit each other, the features of a token are out of range or do not ascend, or
                an activation is negative or not finite. The message names the token.

        >>> sae.encode(x).check()
        """
        if (fault := self._fault()) is not None:
            raise ValueError(f"these are no sound features: {fault}; make them by encode or from_slots")

    def _fault(self) -> str | None:
        """What is wrong with the arrays; None if nothing is. A small call waits for each of these operations."""
        ptr, ids, values, matches = self.indptr, self.indices, self.values, len(self.values)
        for name, array, kinds in (("indptr", ptr, "iu"), ("indices", ids, "iu"), ("values", values, "fiu")):
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in kinds:
                what = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                return f"{name} is {what}, expected a vector of {'numbers' if 'f' in kinds else 'whole numbers'}"
        if len(ptr) != len(self) + 1 or len(ids) != matches:
            return f"{len(ptr)} numbers in indptr and {len(ids)} indices for {len(self)} tokens and {matches} values"
        if ptr[0] != 0 or ptr[-1] != matches or (len(ptr) > 2 and np.count_nonzero(ptr[1:] < ptr[:-1])):
            return f"indptr does not ascend from 0 to {matches}"
        if not matches:
            return None
        ascends = len(ptr) == 2 and not np.count_nonzero(ids[1:] <= ids[:-1])  # of a lone token
        least, most = np.minimum.reduce, np.maximum.reduce  # twice as fast as the methods on a small array
        ends = (ids[0], ids[-1]) if ascends else (least(ids), most(ids))
        if not 0 <= ends[0] <= ends[1] < self.d_sae:
            match = int(np.argmax((ids < 0) | (ids >= self.d_sae)))
            return f"token {self._token_of(match)} has feature {ids[match]}, expected 0 to {self.d_sae - 1}"
        if not ascends:
            rises = np.empty(matches + 1, bool)
            np.greater(ids[1:], ids[:-1], out=rises[1:-1])
            rises[ptr] = True  # features may fall where another token begins
            if np.count_nonzero(rises) <= matches:
                match = int(np.argmin(rises))
                return (
                    f"token {self._token_of(match)} has feature {ids[match]} after {ids[match - 1]}; they must ascend"
                )
        # A comparison with NaN is false. float16 would take the limit for Inf, and so Inf for a number.
        if not 0 <= float(least(values)) <= float(most(values)) <= _LARGEST:
            wide = values.astype(np.float64)
            match = int(np.argmin((wide >= 0) & (wide <= _LARGEST)))
            return f"token {self._token_of(match)} has the activation {values[match]:g}, expected a number from 0 on"
        return None

    def _token_of(self, match: int) -> str:
        """The token of a match, as `name_of_token` names it."""
        return name_of_token(int(np.searchsorted(self.indptr, match, side="right")) - 1, self.shape)

    def __getitem__(self, tokens: slice) -> "Features":
        """The features of consecutive tokens. They share memory with these features, unless the slice has a step.

        >>> from_slots([(np.array([[1], [4], [2]]), np.ones((3, 1), np.float32))], 8, (3,))[1:].indices.tolist()
        [4, 2]
        """
        if not isinstance(tokens, slice):
            raise TypeError(f"features take a slice of tokens, got {tokens!r}; use row(token) or take(ids)")
        begin, end, step = tokens.indices(len(self))
        if step != 1:
            return self.take(np.arange(len(self))[tokens])
        indptr = self.indptr[begin : max(begin, end) + 1]
        matches = slice(int(indptr[0]), int(indptr[-1]))
        return Features(indptr - indptr[0], self.indices[matches], self.values[matches], self.d_sae, (len(indptr) - 1,))

    def take(self, ids: ArrayLike) -> "Features":
        """The features of tokens by number, in the order of `ids`.

        Raises:
            IndexError: a token does not exist.
            ValueError: the ids are not whole numbers.

        >>> features = from_slots([(np.array([[1], [4], [2]]), np.ones((3, 1), np.float32))], 8, (3,))
        >>> features.take([2, 0]).indices.tolist()
        [2, 1]
        """
        tokens = as_array(ids, "ids")
        if tokens.size and tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens go by whole numbers, got {tokens.dtype}; use filter for a mask of matches")
        tokens = tokens.astype(np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self):
            raise IndexError(
                f"expected tokens 0 to {len(self) - 1}, got {tokens.min()} to {tokens.max()}; "
                "count over the leading dimensions"
            )
        rows = tokens.reshape(-1)
        counts = np.diff(self.indptr)[rows]
        indptr = _indptr(counts)
        matches = np.repeat(self.indptr[rows] - indptr[:-1], counts) + np.arange(indptr[-1])
        return Features(indptr, self.indices[matches], self.values[matches], self.d_sae, tokens.shape)

    def filter(self, matches: ArrayLike | None = None, *, features: ArrayLike | None = None) -> "Features":
        """The matches that a mask keeps.

        Args:
            matches: bool, one for each of `values`; None keeps all.
            features: bool [d_sae]; None keeps all.

        Raises:
            ValueError: a mask has another type or shape.

        >>> features = from_slots([(np.array([[1, 4]]), np.array([[3, 2]], np.float32))], 8, (1,))
        >>> features.filter(features.values > 2).indices.tolist()
        [1]
        >>> features.filter(features=np.arange(8) > 2).indices.tolist()
        [4]
        """
        keep = np.ones(len(self.values), bool) if matches is None else as_array(matches, "matches")
        allowed = np.ones(self.d_sae, bool) if features is None else as_array(features, "features")
        for mask, size, what in ((keep, len(self.values), "match"), (allowed, self.d_sae, "feature")):
            if mask.dtype != np.bool_ or mask.shape != (size,):
                raise ValueError(f"expected bool [{size}], one for each {what}, got {mask.dtype} {list(mask.shape)}")
        kept = np.flatnonzero(keep if features is None else keep & allowed[self.indices])
        indptr = np.searchsorted(kept, self.indptr)
        return Features(indptr, self.indices[kept], self.values[kept], self.d_sae, self.shape)

    def top(self, n: int) -> "Features":
        """The n largest activations of each token. Among equal ones, the first features stay.

        >>> from_slots([(np.array([[1, 4]]), np.array([[3, 2]], np.float32))], 8, (1,)).top(1).indices.tolist()
        [1]
        """
        counts = np.diff(self.indptr)
        order = np.lexsort((-self.values, np.repeat(np.arange(len(self)), counts)))  # by token, then by falling value
        rank = np.arange(len(order)) - np.repeat(self.indptr[:-1], counts)
        keep = np.zeros(len(order), bool)
        keep[order[rank < n]] = True
        return self.filter(keep)

    def union(self, other: "Features") -> "Features":
        """The matches of two sets of features of the same tokens. A match of both keeps its value of `self`.

        >>> one, two = (from_slots([(np.array([[i]]), np.ones((1, 1), np.float32))], 8, (1,)) for i in (5, 3))
        >>> one.union(two).indices.tolist()
        [3, 5]
        """
        keys = [np.repeat(np.arange(len(f)), np.diff(f.indptr)) * f.d_sae + f.indices for f in (self, other)]
        key, first = np.unique(
            np.concatenate(keys), return_index=True
        )  # np.unique gives the first of equal keys, which is of `self`
        indptr = np.searchsorted(key, np.arange(len(self) + 1) * self.d_sae)
        values = np.concatenate([self.values, other.values])[first]
        return Features(indptr, (key % self.d_sae).astype(np.int32), values, self.d_sae, self.shape)

    def replaced(self, ids: NDArray[np.int64], rows: "Features") -> "Features":
        """These features with those of the tokens `ids`, which ascend, replaced by `rows` [len(ids)].

        >>> features = sae.encode(x)
        >>> none = features[:1].filter(np.zeros(len(features[:1].values), bool))
        >>> features.replaced(np.array([2]), none).l0()[2]
        np.int64(0)
        """
        is_new = np.zeros(len(self), bool)
        is_new[ids] = True
        counts = np.diff(self.indptr)
        kept = np.repeat(~is_new, counts)
        counts[ids] = np.diff(rows.indptr)
        new = np.repeat(is_new, counts)
        indices, values = np.empty(len(new), np.int32), np.empty(len(new), np.float32)
        indices[new], values[new] = rows.indices, rows.values
        np.logical_not(new, out=new)
        indices[new], values[new] = self.indices[kept], self.values[kept]
        return Features(_indptr(counts), indices, values, self.d_sae, self.shape)

    def spread(self, ids: NDArray[np.int64], shape: tuple[int, ...]) -> "Features":
        """Features of this shape, in which the tokens `ids`, which ascend, have these features and the others none.

        >>> sae.encode(x[:2]).spread(np.array([1, 3]), (4,)).l0()[[0, 2]].tolist()
        [0, 0]
        """
        if len(ids) == math.prod(shape):
            return dataclasses.replace(self, shape=shape)
        counts = np.zeros(math.prod(shape), np.int64)
        counts[ids] = np.diff(self.indptr)
        return Features(_indptr(counts), self.indices, self.values, self.d_sae, shape)

    def l0(self) -> NDArray[np.int64]:
        """Number of active features of each token: int64 [*shape].

        >>> from_slots([(np.array([[1, 4]]), np.array([[3, 2]], np.float32))], 8, (1,)).l0().tolist()
        [2]
        """
        return np.diff(self.indptr).reshape(self.shape)

    def row(self, token: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Features and values of one token in order of falling value. A negative number counts from the end.

        Raises:
            IndexError: the token does not exist.

        >>> ids, values = from_slots([(np.array([[4, 1]]), np.array([[3, 2]], np.float32))], 8, (1,)).row(0)
        >>> ids.tolist(), values.tolist()
        ([4, 1], [3.0, 2.0])
        """
        if not -len(self) <= token < len(self):
            raise IndexError(
                f"token {token} does not exist among {len(self)} tokens; count from 0 over the leading dimensions"
            )
        begin = token % len(self)
        matches = slice(int(self.indptr[begin]), int(self.indptr[begin + 1]))
        order = np.argsort(-self.values[matches], kind="stable")
        return self.indices[matches][order], self.values[matches][order]

    def to_scipy(self) -> "scipy.sparse.csr_array":
        """A scipy CSR array [tokens, d_sae] that shares memory with the features.

        Raises:
            ImportError: scipy is not installed.

        >>> sae.encode(x).to_scipy().shape
        (6, 150)
        """
        import scipy.sparse

        return scipy.sparse.csr_array((self.values, self.indices, self.indptr), shape=(len(self), self.d_sae))

    def to_dense(self) -> NDArray[np.float32]:
        """A dense array, float32 [*shape, d_sae].

        >>> from_slots([(np.array([[3, 1]]), np.array([[3, 2]], np.float32))], 4, (1,)).to_dense().tolist()
        [[0.0, 2.0, 0.0, 3.0]]
        """
        dense = np.zeros((len(self), self.d_sae), np.float32)
        dense[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.values
        return dense.reshape(*self.shape, self.d_sae)

    def falling_slots(self) -> Slots:
        """The same as `to_slots`, with the features of a row in order of falling value, as `SAE.encode_slots` has them.

        >>> features = from_slots([(np.array([[3, 5]]), np.array([[2, 4]], np.float32))], 8, (1,))
        >>> features.falling_slots()[0].tolist()
        [[5, 3]]
        """
        indices, values = self.to_slots()
        order = np.argsort(-values, axis=1, kind="stable")
        return np.take_along_axis(indices, order, 1), np.take_along_axis(values, order, 1)

    def to_slots(self) -> Slots:
        """Indices i64 and values f32 [tokens, slots], as decode.onnx reads them, with the slots of the fullest token.

        The features of a row ascend; an unused slot has value 0.

        >>> sae.encode(x).to_slots()[0].shape == (6, sae.encode(x).l0().max())
        True
        """
        counts = np.diff(self.indptr)
        slots = max(int(counts.max(initial=0)), 1)
        if len(self.values) == len(counts) * slots:  # a lone token, or top k: no slot is unused
            return self.indices.astype(np.int64).reshape(-1, slots), self.values.astype(np.float32).reshape(-1, slots)
        used = np.arange(slots) < counts[:, None]
        indices, values = np.zeros(used.shape, np.int64), np.zeros(used.shape, np.float32)
        indices[used], values[used] = self.indices, self.values
        return indices, values


def name_of_token(token: int, shape: tuple[int, ...]) -> str:
    """The index of a token in an array of this leading shape, for messages.

    >>> name_of_token(5, (3, 4))
    '1, 1'
    """
    return ", ".join(map(str, np.unravel_index(token, shape))) if shape else "0"


def from_slots(parts: Iterable[Slots], d_sae: int, shape: tuple[int, ...]) -> Features:
    """Features of this shape from parts of consecutive rows.

    Raises:
        ValueError: a feature is out of range, or twice in a row.

    >>> from_slots([(np.array([[3, 1], [2, 0]]), np.array([[3, 2], [1, 0]], np.float32))], 4, (2,))
    Features(2 tokens, 3 matches, L0 1.50, d_sae 4)
    """
    return concatenate([_compressed(slots, d_sae) for slots in parts], d_sae, shape)


def concatenate(parts: Sequence[Features], d_sae: int, shape: tuple[int, ...]) -> Features:
    """Features of this shape with the tokens of all parts, one part after the other. A lone part is not copied.

    >>> concatenate([sae.encode(x[:2]), sae.encode(x[2:])], 150, (6,)).l0().sum() == sae.encode(x).l0().sum()
    np.True_
    """
    if len(parts) == 1:  # the usual case of a small call, without copies
        (part,) = parts
        return Features(part.indptr, part.indices, part.values, d_sae, shape)
    counts = np.concatenate([np.empty(0, np.int64), *(np.diff(part.indptr) for part in parts)])
    indices = np.concatenate([np.empty(0, np.int32), *(part.indices for part in parts)])
    values = np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)])
    return Features(_indptr(counts), indices, values, d_sae, shape)


def _compressed(slots: Slots, d_sae: int) -> Features:
    indices, values = slots
    used = values > 0
    ids = indices[used]
    if len(used) == 1:
        indptr, order = np.array([0, len(ids)]), ids.argsort()
    else:
        counts = used.sum(axis=1)
        indptr, order = _indptr(counts), np.argsort(np.repeat(np.arange(len(used)) * d_sae, counts) + ids)
    ids = ids[order]
    # As a number without a sign, a negative one is among the largest.
    if len(ids) and np.maximum.reduce(ids.view(np.uint64)) >= d_sae:
        raise ValueError(
            f"a graph gave a feature out of range, expected 0 to {d_sae - 1}; load with rebuild=True, or export again"
        )
    same = ids[1:] == ids[:-1]
    if np.count_nonzero(same) and not np.isin(np.flatnonzero(same) + 1, indptr).all():  # of neighbours in one row
        raise ValueError("a graph gave a feature twice in a row; load with rebuild=True, or export again")
    return Features(indptr, ids.astype(np.int32), values[used][order], d_sae, (len(used),))


def _indptr(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr
