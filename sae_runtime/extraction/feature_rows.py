"""Consecutive tokens with their features and their origins, ready to be written to a file."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.activations.stored import Activations
from sae_runtime.core.features import Features
from sae_runtime.extraction.encodings import Values, rounded


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """The features of the tokens from number `begin` on, and the origin of each token [n].

    If the activations do not know their origins, documents are 0, positions are row numbers, and `tokens` is None.
    """

    begin: int
    features: Features
    documents: NDArray[np.int32]
    positions: NDArray[np.int64] | NDArray[np.int32]
    tokens: NDArray[np.int32] | None

    @property
    def end(self) -> int:
        """Number of the token after the last one."""
        return self.begin + len(self.features)

    def values(self, kind: Values) -> NDArray[Any]:
        """The values of the features as they are written, see `encodings.rounded`."""
        return rounded(self.features, kind, name=lambda row: f"row {self.begin + row}")


def feature_rows(activations: Activations, begin: int, features: Features) -> FeatureRows:
    """The features of the rows from `begin` on, with their origins.

    >>> from sae_runtime import load, open_activations
    >>> activations = open_activations(activations_path)
    >>> part = feature_rows(activations, 4, load(bundle_path).encode(activations.slice(4, 7)))
    >>> part.begin, part.end, part.positions.tolist()
    (4, 7, [4, 5, 6])
    """
    part = slice(begin, begin + len(features))
    documents, positions, tokens = activations.documents, activations.positions, activations.tokens
    return FeatureRows(
        begin,
        features,
        np.zeros(len(features), np.int32) if documents is None else documents[part],
        np.arange(part.start, part.stop) if positions is None else positions[part],
        None if tokens is None else tokens[part],
    )
