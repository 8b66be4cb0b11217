"""Edits of features: f' = clip(factor * f + shift, low, high)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Edit:
    """A change of one feature's activation from f to clip(factor * f + shift, low, high).

    `set`, `add`, `scale`, `ablate` and `cap` make the usual edits.

    Raises:
        ValueError: the feature is not a whole number, or another number is not a finite float32.

    >>> Edit.scale(12, 2.0).factor, Edit.set(12, 8.0).shift, Edit.cap(12, 3.0).high
    (2.0, 8.0, 3.0)
    """

    feature: int
    factor: float = 1.0
    shift: float = 0.0
    low: float = -_LARGEST
    high: float = _LARGEST

    def __post_init__(self) -> None:
        if not isinstance(self.feature, int | np.integer):
            raise ValueError(f"a feature is a whole number, got {self.feature!r}")
        for number in (self.factor, self.shift, self.low, self.high):
            if not math.isfinite(number) or abs(number) > _LARGEST:
                raise ValueError(f"an edit of feature {self.feature} needs finite float32 numbers, got {number}")

    @classmethod
    def set(cls, feature: int, value: float) -> "Edit":
        """Fix the activation at a value on every token.

        >>> steered = sae.steer(x, Edit.set(3, 8.0))
        """
        return cls(feature, factor=0.0, shift=value)

    @classmethod
    def add(cls, feature: int, amount: float) -> "Edit":
        """Raise the activation by an amount on every token.

        >>> steered = sae.steer(x, Edit.add(3, 1.5))
        """
        return cls(feature, shift=amount)

    @classmethod
    def scale(cls, feature: int, factor: float) -> "Edit":
        """Multiply the activation by a factor; an inactive feature stays inactive.

        >>> steered = sae.steer(x, Edit.scale(3, 0.5))
        """
        return cls(feature, factor=factor)

    @classmethod
    def ablate(cls, feature: int) -> "Edit":
        """Turn the feature off on every token.

        >>> steered = sae.steer(x, Edit.ablate(3))
        """
        return cls(feature, factor=0.0)

    @classmethod
    def cap(cls, feature: int, high: float) -> "Edit":
        """Limit the activation to a largest value.

        >>> steered = sae.steer(x, Edit.cap(3, 2.0))
        """
        return cls(feature, high=high)


def as_inputs(requests: Sequence[Sequence[Edit]], d_sae: int) -> dict[str, NDArray[np.generic]]:
    """The edits of each request as inputs of steer.onnx, [requests, e], for the e edits of the longest request.

    Shorter requests are padded with edits that change nothing.

    Raises:
        ValueError: a feature is out of range, or edited twice in one request.

    >>> as_inputs([[Edit.set(4, 8.0)], []], d_sae=6)["features"].tolist()
    [[4], [0]]
    """
    longest = max(map(len, requests), default=0)
    features: list[int] = []
    numbers: list[tuple[float, float, float, float]] = []
    for edits in requests:
        seen = set()
        for edit in edits:
            if not 0 <= edit.feature < d_sae:
                raise ValueError(f"feature {edit.feature} does not exist, expected 0 to {d_sae - 1}")
            if edit.feature in seen:
                raise ValueError(f"feature {edit.feature} is edited twice in one request; give one edit for it")
            seen.add(edit.feature)
            features.append(edit.feature)
            numbers.append((edit.factor, edit.shift, edit.low, edit.high))
        if idle := longest - len(edits):
            features += [0] * idle
            numbers += [(1.0, 0.0, -_LARGEST, _LARGEST)] * idle
    shape = (len(requests), longest)
    table = np.array(list(zip(*numbers, strict=True)), np.float32).reshape(4, *shape)
    scale, shift, low, high = table  # views of contiguous rows, which DLPack needs
    ids = np.array(features, np.int64).reshape(shape)
    return {"features": ids, "scale": scale, "shift": shift, "low": low, "high": high}
