"""Arrays that a caller gives, of any library: as numpy arrays of numbers, and whether all their numbers are finite."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

EQUAL = 3e-7  # of the length of their mean: rows that are nearer to it on average are equal, the rest is rounding


def as_array(x: Any, what: str = "activations") -> NDArray[Any]:
    """A numpy array of the numbers or bools of any array, tensor, table or list; a numpy array is not copied.

    A tensor of torch or CuPy comes from its device, without its gradient. A number of at most 16 bits, such as
    bfloat16, becomes float32 where numpy has no such type.

    Args:
        x: an array of numpy, torch, CuPy, JAX or TensorFlow, a table of pandas, or what else gives numpy its numbers.
        what: the name of the array in messages.

    Raises:
        ValueError: x is masked, sparse, quantised, without numbers (the meta device) or not of real numbers.

    >>> as_array([[1, 2.5]]).shape
    (1, 2)
    """
    array = x if type(x) is np.ndarray else _converted(x, what)
    kind = array.dtype.kind
    if kind in "fiub":
        return array
    if kind == "V" and array.dtype.names is None and issubclass(array.dtype.type, np.generic):
        # A type of ml_dtypes, such as bfloat16 or float8; we do not import ml_dtypes.
        if array.dtype.type is not np.void and "complex" not in array.dtype.name:
            return array.astype(np.float32)
    given = f"{array.dtype}" if isinstance(x, np.ndarray | list | tuple) else f"{array.dtype} from {_name(x)}"
    raise ValueError(f"{what} must be real numbers, got {given}; convert them to float32")


def as_float32(x: Any, what: str = "activations") -> NDArray[np.float32]:
    """The numbers of `as_array` as contiguous float32. A contiguous float32 array is not copied.

    Raises:
        ValueError: as `as_array`, or the values are bools.

    >>> as_float32([1, 2.5]).tolist()
    [1.0, 2.5]
    """
    array = as_array(x, what)
    if array.dtype == np.float32:
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        raise ValueError(f"{what} must be real numbers, got bool; convert them to float32")
    with np.errstate(over="ignore"):  # a number too large for float32 becomes Inf, and its row is refused later
        # ascontiguousarray makes a scalar a vector; reshape undoes that.
        return np.ascontiguousarray(array, np.float32).reshape(array.shape)


def as_number(x: Any, what: str) -> float:
    """One number of any library.

    Raises:
        ValueError: x is no number, or more than one.

    >>> as_number(np.array([3]), "k")
    3
    """
    if type(x) is float or (type(x) is int and abs(x) < 1e308):  # no float holds a larger one
        return x
    array = as_array(x, what)
    if array.size != 1 or array.dtype == np.bool_:
        raise ValueError(f"{what} must be one number, got {array.dtype} {list(array.shape)}; give one")
    number: float = array.item()
    return number


def _converted(x: Any, what: str) -> NDArray[Any]:
    """The numpy array of an object that is not exactly one."""
    reason = _unfit(x)
    if reason is not None:
        raise ValueError(f"{what} must be an array of real numbers, got {_name(x)} that {reason}")
    try:
        if _is_of(x, "torch"):
            return np.asarray(_from_torch(x))
        if _is_of(x, "cupy"):
            return np.asarray(x.get())
        if isinstance(x, list | tuple):
            plain = int | float | np.generic
            # Else numpy would forget the masks of masked rows, and could not read tensors that have a gradient.
            x = [item if isinstance(item, plain) else as_array(item, what) for item in x]
        elif hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
            return np.from_dlpack(x)
        return np.asarray(x)
    except MemoryError:
        raise
    except Exception as error:  # each library has exceptions of its own
        text = " ".join(str(error).split())
        if isinstance(error, ValueError) and text.startswith(f"{what} must be"):
            raise
        raise ValueError(
            f"{what} must be an array of real numbers, got {_name(x)} that numpy cannot read ({text}); "
            "make it a numpy array of float32"
        ) from error


def _unfit(x: Any) -> str | None:
    """Why an array has no plain numbers, and what to do; None if it may have them."""
    if _is_of(x, "numpy") and hasattr(x, "mask"):
        return "is masked; fill its gaps with .filled() or drop the rows"
    if _is_of(x, "torch"):
        if x.is_nested:
            return "is nested; pad it with .to_padded_tensor(0.0)"
        if str(x.layout) != "torch.strided":
            return f"has the layout {x.layout}; make it dense with .to_dense()"
        if x.is_quantized:
            return "is quantised; call .dequantize()"
        if x.is_meta:
            return "is on the meta device, which keeps no numbers; load the model with its weights"
    elif hasattr(x, "toarray"):  # scipy.sparse and its likes
        return "is sparse; make it dense with .toarray()"
    return None


def _from_torch(x: Any) -> Any:
    """A torch tensor's numbers, from its device and without its gradient; numpy lacks some of torch's short types."""
    return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy(force=True)


def _is_of(x: Any, library: str) -> bool:
    """Whether x is an array of a library, or of a class that is made from one; the library is not imported."""
    return any(
        base.__module__.partition(".")[0] == library and base.__name__ in ("Tensor", "ndarray", "MaskedArray")
        for base in type(x).__mro__
    )


def _name(x: Any) -> str:
    """The class of x in words, such as "torch.Tensor"."""
    kind = type(x)
    library = kind.__module__.partition(".")[0]
    return f"a {kind.__name__}" if library == "builtins" else f"a {library}.{kind.__name__}"


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
