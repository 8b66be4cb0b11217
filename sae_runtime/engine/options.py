"""The options of the served rule, checked against the SAE."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.bundle.manifest import Architecture
from sae_runtime.core.arrays import as_float32, as_number

Feed = dict[str, NDArray[Any]]
"""Inputs of a graph, by name."""


def served_feed(architecture: Architecture, k: float | None, threshold: ArrayLike | None) -> Feed:
    """The optional inputs of encode.onnx for the options of the served rule.

    Args:
        architecture: of the SAE.
        k: matches a token, for token choice; None means as fitted.
        threshold: one number or [d_sae], for mutual and feature choice; None means as fitted.

    Raises:
        ValueError: an option belongs to another selection, or is out of range.

    >>> served_feed(Architecture(d_in=24, d_sae=150, selection="topk", k=6), k=3, threshold=None)
    {'slots': array([3])}
    """
    by_threshold, feed = architecture.selection == "threshold", Feed()
    if k is not None:
        if by_threshold:
            raise ValueError("k belongs to encode_batch or to token choice; this SAE is served by its threshold")
        feed["slots"] = np.array([int(checked_k(architecture, k))])
    if threshold is not None:
        if not by_threshold:
            raise ValueError("threshold belongs to mutual and feature choice; use k here")
        array, d_sae = np.atleast_1d(as_float32(threshold, "threshold")), architecture.d_sae
        if array.shape not in ((1,), (d_sae,)) or not np.isfinite(array).all() or (array < 0).any():
            raise ValueError(f"threshold must be one number or {d_sae}, finite and >= 0, got shape {array.shape}")
        feed["threshold"] = array
    return feed


def checked_k(architecture: Architecture, k: float) -> float:
    """The number k; raises ValueError if it is none or the SAE cannot keep k features a token.

    >>> checked_k(Architecture(d_in=24, d_sae=150, selection="topk", k=6), 3)
    3
    """
    k = as_number(k, "k")
    if architecture.selection == "groupmax":
        raise ValueError(f"this SAE keeps the largest of each of {architecture.k} groups; its k cannot be changed")
    if not (0 < k <= architecture.d_sae and (architecture.selection == "threshold" or k == int(k))):
        raise ValueError(f"k must be in (0, d_sae={architecture.d_sae}] (whole for token choice), got {k:g}")
    return k
