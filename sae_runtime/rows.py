"""Rows of activations as callers give them, and what is said of one that cannot be used."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.activations import as_float32, first_nonfinite
from sae_runtime.features import Slots


def finite(x: NDArray[Any], begin: int, place: Callable[[int], str]) -> NDArray[np.float32]:
    """x [n, d_in] in float32; ValueError names the row that is not finite, the first being number `begin`."""
    rows = as_float32(x)
    bad = first_nonfinite(rows)
    if bad is not None:
        raise ValueError(f"row {place(begin + bad)} of the activations holds NaN or Inf; drop it or mend the model")
    return rows


def refuse_overflow(slots: Slots, begin: int, place: Callable[[int], str]) -> None:
    """Raise ValueError if the features of a row are no finite numbers, though the row is."""
    bad = first_nonfinite(slots[1])
    if bad is not None:
        raise ValueError(
            f"row {place(begin + bad)} of the activations is so large that its features overflow float32; drop it or "
            "mend the model"
        )


def place_of(row: int, shape: tuple[int, ...]) -> str:
    """What a message calls a row of activations with these leading dimensions."""
    return ", ".join(str(i) for i in np.unravel_index(row, shape)) if shape else "0"


def numbered(place: Callable[[int], str], ids: NDArray[np.int64], row: int) -> str:
    """The same of a row among those with these numbers."""
    return place(int(ids[row]))


def mask_of(valid: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """bool [n], or ValueError if there is not one truth value for each token."""
    mask = np.asarray(valid)
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise ValueError(f"valid must be bool {list(shape)}, one for each token, got {mask.dtype} {list(mask.shape)}")
    return mask.reshape(-1)


def gates_of(gate: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """float32 of this shape, or ValueError if there is not one finite number for each token."""
    array = as_float32(gate)
    if not np.isfinite(array).all():
        raise ValueError("gate holds NaN or Inf; expected finite numbers, one for each token")
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(
            f"gate must broadcast to {list(shape)}, one number for each token, got {list(array.shape)}"
        ) from error
