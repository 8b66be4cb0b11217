"""Activations that a caller gives, as numbered rows that are checked when they are read."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle.manifest import Manifest
from sae_runtime.core.arrays import as_array, as_float32, first_nonfinite
from sae_runtime.core.features import name_of_token
from sae_runtime.core.slots import Slots

Read = Callable[[NDArray[np.int64]], ArrayLike]
"""Gives rows of activations by their numbers, which ascend: [len(ids), d_in], any real type."""


@dataclass(frozen=True)
class Rows:
    """Rows of activations, which a call reads by number and gives as finite float32.

    Attributes:
        read: gives tokens by their numbers.
        ids: the token of each row, ascending. A masked token has no row.
        shape: leading dimensions of all tokens.
    """

    read: Callable[[NDArray[np.int64]], NDArray[Any]]
    ids: NDArray[np.int64]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __call__(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Rows by number, which ascend: float32 [number of rows, d_in].

        Raises:
            ValueError: a row holds NaN or Inf; the message names its token.
        """
        ids = self.ids[rows]
        x = as_float32(self.read(ids))
        bad = first_nonfinite(x)
        if bad is not None:
            raise ValueError(
                f"row {name_of_token(int(ids[bad]), self.shape)} of the activations holds NaN or Inf; drop it or mend "
                "the model"
            )
        return x

    def all(self) -> NDArray[np.float32]:
        """All rows: float32 [n, d_in]; raises ValueError as a call does."""
        return self(slice(None))

    def refuse_overflow(self, rows: NDArray[np.int64], slots: Slots) -> None:
        """Raise ValueError if the features of a row are not finite."""
        bad = first_nonfinite(slots[1])
        if bad is not None:
            raise ValueError(
                f"row {name_of_token(int(self.ids[rows[bad]]), self.shape)} of the activations is so large that its "
                "features overflow float32; drop it or mend the model"
            )


def rows_of(x: ArrayLike, manifest: Manifest, valid: ArrayLike | None = None) -> Rows:
    """The rows of an array of activations.

    Args:
        x: [..., d_in], any real type, of any library (`as_array`).
        manifest: of the SAE that encodes them.
        valid: bool [...]; a token that is False gets no row.

    Raises:
        ValueError: x is no array of numbers or has another d_in than the SAE, or `valid` is not a bool for each token.

    >>> rows_of(x, sae.manifest).all().shape
    (6, 24)
    """
    array = as_array(x)
    manifest.check_d_in(array.shape[-1] if array.ndim else None)
    shape = array.shape[:-1]
    flat = array.reshape(math.prod(shape), array.shape[-1])
    ids = np.arange(len(flat))
    if valid is not None:
        mask = as_array(valid, "valid")
        if mask.dtype != np.bool_ or mask.shape != shape:
            raise ValueError(
                f"valid must be bool {list(shape)}, one for each token, got {mask.dtype} {list(mask.shape)}"
            )
        ids = np.flatnonzero(mask)
    return Rows(functools.partial(_read, flat), ids, shape)


# Not inside `rows_of`: Python evaluates the annotations of an inner function at each call, which takes 9 us here.
def _read(flat: NDArray[Any], tokens: NDArray[np.int64]) -> NDArray[Any]:
    if len(tokens) and tokens[-1] - tokens[0] == len(tokens) - 1:
        return flat[tokens[0] : tokens[-1] + 1]  # without a copy
    return flat[tokens]


def batch_rows(x: ArrayLike | Read, tokens: int | None, valid: ArrayLike | None, manifest: Manifest) -> Rows:
    """The rows of an array or of a function; the rows of a function are checked when they are read.

    Args:
        x: [..., d_in], or a function that gives rows by their numbers.
        tokens: the number of rows that a function gives; None for an array.
        valid: for an array, see `rows_of`; None for a function.
        manifest: of the SAE that encodes them.

    Raises:
        ValueError: the arguments do not fit.

    >>> batch_rows(lambda ids: x[ids], 6, None, sae.manifest).all().shape
    (6, 24)
    """
    if not callable(x):
        if tokens is not None:
            raise ValueError("tokens belongs to a function that gives rows; an array of activations has its own")
        return rows_of(x, manifest, valid)
    if tokens is None or valid is not None:
        raise ValueError("a function that gives rows needs tokens, their number, and takes no valid mask")
    if not isinstance(tokens, int | np.integer) or isinstance(tokens, bool) or not 0 <= tokens < 2**63:
        raise ValueError(f"tokens is the number of rows that the function gives, from 0 on, got {tokens!r}")

    def read(ids: NDArray[np.int64]) -> NDArray[Any]:
        given = rows_of(x(ids), manifest)
        if given.shape != ids.shape:
            raise ValueError(
                f"read gave activations [{', '.join(map(str, given.shape))}, d_in], expected {len(ids)} rows"
            )
        return given.read(given.ids)

    return Rows(read, np.arange(tokens), (tokens,))
