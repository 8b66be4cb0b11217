"""Arrays in memory: their type, and whether all their numbers are finite."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

EQUAL = 3e-7  # of the length of their mean: rows that are nearer to it on average are equal, the rest is rounding


def as_float32(x: Any) -> NDArray[np.float32]:
    """An array of any real type as contiguous float32. A contiguous float32 array is not copied.

    Raises:
        ValueError: the values are not real numbers.

    >>> as_float32([1, 2.5]).tolist()
    [1.0, 2.5]
    """
    array = np.asarray(x)
    if array.dtype == np.float32:
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":  # the type comes from ml_dtypes, which we do not import
        return bfloat16_to_float32(np.ascontiguousarray(array).view(np.uint16)).reshape(array.shape)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"activations must be real numbers, got {array.dtype}; convert them to float32")
    with np.errstate(over="ignore"):  # a number too large for float32 becomes Inf, and its row is refused later
        # ascontiguousarray makes a scalar a vector; reshape undoes that.
        return np.ascontiguousarray(array, np.float32).reshape(array.shape)


def first_nonfinite(x: NDArray[np.float32]) -> int | None:
    """Number of the first row of x [n, d_in] that holds NaN or Inf; None if there is no such row.

    >>> first_nonfinite(np.array([[1, 2], [3, np.nan]], np.float32))
    1
    """
    # If the sum of squares is finite, so are all values. If not, a value is not finite, or the sum overflows.
    if math.isfinite(np.vdot(x, x)):  # vdot gives no warnings
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(x.sum(axis=1)))
    for row in suspects:
        if not np.isfinite(x[row]).all():
            return int(row)
    return None


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bits; exact, since bfloat16 is the upper half of float32.

    >>> bfloat16_to_float32(np.array([0x3F80, 0x4000], np.uint16))
    array([1., 2.], dtype=float32)
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)
