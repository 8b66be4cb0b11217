"""Checks of activations in memory: type, shape and finite numbers, and how messages name a row."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.core.arrays import as_float32, first_nonfinite
from sae_runtime.core.features import Slots


def finite(x: NDArray[Any], name_row: Callable[[int], str]) -> NDArray[np.float32]:
    """x [n, d_in] in float32; ValueError names the first row that is not finite."""
    rows = as_float32(x)
    bad = first_nonfinite(rows)
    if bad is not None:
        raise ValueError(f"row {name_row(bad)} of the activations holds NaN or Inf; drop it or mend the model")
    return rows


def refuse_overflow(slots: Slots, ids: NDArray[np.int64], name_row: Callable[[int], str]) -> None:
    """Raise ValueError if the values of a row are not finite; `ids` are the numbers of the rows."""
    bad = first_nonfinite(slots[1])
    if bad is not None:
        raise ValueError(
            f"row {name_row(int(ids[bad]))} of the activations is so large that its features overflow float32; "
            "drop it or mend the model"
        )


def place_of(row: int, shape: tuple[int, ...]) -> str:
    """The name of a row in messages, for activations with these leading dimensions.

    >>> place_of(7, (3, 4))
    '1, 3'
    """
    return ", ".join(str(i) for i in np.unravel_index(row, shape)) if shape else "0"


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


def thresholds_of(threshold: ArrayLike, d_sae: int) -> NDArray[np.float32]:
    """float32 [1] or [d_sae], or ValueError if they are not finite numbers >= 0."""
    array = np.atleast_1d(as_float32(threshold))
    if array.shape not in ((1,), (d_sae,)) or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"threshold must be one number or {d_sae}, finite and >= 0, got shape {array.shape}")
    return array
