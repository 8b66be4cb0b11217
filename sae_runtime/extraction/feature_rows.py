"""Consecutive tokens with their features, ready to be written to a file."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations
from sae_runtime.core.features import Features


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Tokens from number `begin` on: compressed rows as in `Features`, and where each token [n] came from.

    `values` are float32 or float16. Where the activations do not say it, the document is 0, the position is the number
    of the row, and `tokens` is None.
    """

    begin: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[Any]
    documents: NDArray[np.int32]
    positions: NDArray[np.int64] | NDArray[np.int32]
    tokens: NDArray[np.int32] | None

    @property
    def end(self) -> int:
        """Number of the token after the last."""
        return self.begin + len(self.indptr) - 1


def feature_rows(activations: Activations, begin: int, features: Features, values: str) -> FeatureRows:
    """The features of consecutive activations with where each came from.

    Args:
        activations: knows documents, positions and tokens, or not.
        begin: the row of the first of these features.
        features: of the rows from `begin` on.
        values: the type of the values, "float32" or "float16".

    Raises:
        ValueError: a value is too large for float16.

    >>> from sae_runtime import load, open_activations
    >>> activations = open_activations(activations_path)
    >>> part = feature_rows(activations, 4, load(bundle_path).encode(activations.slice(4, 7)), "float16")
    >>> part.begin, part.end, part.positions.tolist()
    (4, 7, [4, 5, 6])
    """
    part = slice(begin, begin + len(features))
    doc, pos, token = activations.documents, activations.positions, activations.tokens
    return FeatureRows(
        begin,
        features.indptr,
        features.indices,
        _half(features, begin) if values == "float16" else features.values,
        np.zeros(len(features), np.int32) if doc is None else doc[part],
        np.arange(part.start, part.stop) if pos is None else pos[part],
        None if token is None else token[part],
    )


def _half(features: Features, begin: int) -> NDArray[np.float16]:
    largest = np.finfo(np.float16).max
    too_large = np.flatnonzero(features.values > largest)
    if len(too_large):
        row = begin + int(np.searchsorted(features.indptr, too_large[0], side="right")) - 1
        raise ValueError(
            f"row {row} has a value of {features.values[too_large[0]]:g}, too large for float16 (at most {largest:g}); "
            "use float32 (--values float32)"
        )
    smallest = np.finfo(np.float16).smallest_subnormal
    return np.maximum(features.values.astype(np.float16), smallest)  # 0 would mean no match
