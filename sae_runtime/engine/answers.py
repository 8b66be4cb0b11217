"""What a graph answers, held to the contract before anyone reads it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sae_runtime.bundle.folder import BundleError


def checked(graph: str, outputs: Sequence[NDArray[Any]], *expected: tuple[DTypeLike, tuple[int, ...]]) -> Any:
    """The outputs of a graph, if each has its type and shape.

    Args:
        graph: file name of the graph.
        outputs: as onnxruntime gives them.
        expected: type and shape of each output.

    Raises:
        BundleError: an output has another type or shape, or their number is another one.

    >>> checked("decode.onnx", [np.zeros((2, 3))], (np.float32, (2, 3)))
    Traceback (most recent call last):
    sae_runtime.bundle.opened.BundleError: decode.onnx breaks the contract: it gives float64 [2, 3], expected ...
    """
    if len(outputs) != len(expected):
        raise _broken(graph, f"it gives {len(outputs)} outputs, expected {len(expected)}")
    for array, (dtype, shape) in zip(outputs, expected, strict=True):
        if array.dtype != dtype or array.shape != shape:
            raise _broken(
                graph, f"it gives {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {list(shape)}"
            )
    return outputs


def refuse_negative(graph: str, values: NDArray[np.float32]) -> None:
    """Raise BundleError if an activation of a feature is negative.

    >>> refuse_negative("encode.onnx", np.zeros((2, 3), np.float32))
    """
    if np.minimum.reduce(values, axis=None, initial=0) < 0:
        raise _broken(graph, "it gives negative activations of features")


def _broken(graph: str, how: str) -> BundleError:
    return BundleError(f"{graph} breaks the contract: {how}; load with rebuild=True, or export again")
