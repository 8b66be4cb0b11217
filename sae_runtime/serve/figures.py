"""Figures of an SAE that is served: the recent ones, the manifest's, and which features should have been active."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.stats import Stats


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of one SAE; None where they are not known.

    Attributes:
        tokens: on which they were counted.
        l0: active features of a token, on average.
        explained_variance: 1 - FVU.
        saturated: share of the tokens that filled all slots, so that they were encoded twice; None by top k.
        silent: number of features that should have been active by now and were not.
    """

    tokens: int = 0
    l0: float | None = None
    explained_variance: float | None = None
    saturated: float | None = None
    silent: int | None = None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What only grows since the start.

    Attributes:
        tokens: that were encoded.
        matches: active features of all of them.
        saturated: tokens that filled all slots.
        redone: tokens of which the fast encoder was not certain, so that encode.onnx encoded them again.
        sampled: tokens on which the explained variance was measured.
        edits: edits by the features they change.
        largest_edit: largest activation that an edit set or added, without its sign.
        largest_multiple: the same in multiples of the feature's largest activation.
        largest_factor: largest factor of an edit, without its sign.
    """

    tokens: int = 0
    matches: int = 0
    saturated: int = 0
    redone: int = 0
    sampled: int = 0
    edits: int = 0
    largest_edit: float = 0.0
    largest_multiple: float = 0.0
    largest_factor: float = 0.0


def expected_features(stats: Stats, tokens: int) -> NDArray[np.bool_]:
    """The features that should have been active on some of so many tokens, bool [d_sae].

    If tokens were independent, chance would leave one of them out on one server of a thousand. A feature that the
    stats saw too seldom is not expected, since its density is not known well.

    >>> stats = Stats(np.array([0.5, 1e-6], np.float32), np.ones(2, np.float32), tokens=1000)
    >>> expected_features(stats, 100).tolist()
    [True, False]
    """
    needed = math.log(1000 * len(stats.density))
    found: NDArray[np.bool_] = stats.density.astype(np.float64) * min(tokens, stats.tokens) >= needed
    return found


def expected_figures(manifest: Manifest | None, stats: Stats | None) -> Figures:
    """The figures of a manifest that live traffic is compared with.

    Callers send all rows, so the figures with the rows that training left out are taken where there are some.
    """
    if manifest is None:
        return Figures()
    measured: Mapping[str, float] = {**manifest.measured, **manifest.measured_with_left_out}
    fvu, l0, tokens = (measured.get(name) for name in ("fvu", "l0", "tokens"))
    return Figures(
        tokens=int(tokens or 0),
        l0=l0,
        explained_variance=None if fvu is None else 1 - fvu,
        saturated=None if manifest.architecture.k is not None else 0.001,  # what calibrate sets the slots for
        silent=None if stats is None else 0,
    )
