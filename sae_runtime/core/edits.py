"""Edits of features: f' = clip(factor * f + shift, low, high), on every token or only where the feature is active."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.arrays import as_number
from sae_runtime.core.labels import Labels, as_feature, shown

_LARGEST = float(np.finfo(np.float32).max)
_STEEP = 1e30  # neither overflows float32 when an activation multiplies it, nor stays below _HIGHEST
_HIGHEST = 1e10


@dataclass(frozen=True)
class Edit:
    """A change of one feature's activation from f to clip(factor * f + shift, low, high).

    `set` (the field's clamp), `add`, `scale`, `ablate` and `cap` make the usual edits. Their `times` gives a number as
    a multiple of the feature's largest activation, which the bundle keeps in its stats.

    Attributes:
        feature: the feature's number, or its label in the bundle's labels. A text that is a whole number is the number.
        factor: multiplies f.
        shift: is added.
        low: the least that the result may be.
        high: the most that it may be.
        only_active: edit only the tokens on which the feature is active, f > 0.
        of_largest: `shift`, `low` and `high` are multiples of the feature's largest activation; `resolved` makes them
            plain numbers.

    Raises:
        ValueError: the feature is neither a whole number nor a label, another number is not a finite float32, or a
            switch is no bool.

    >>> Edit.scale(12, 2.0).factor, Edit.set(12, 8.0).shift, Edit.cap(12, 3.0).high
    (2.0, 8.0, 3.0)
    >>> Edit.set("include", times=2).feature, Edit.ablate("12").feature
    ('include', 12)
    """

    feature: int | str
    factor: float = 1.0
    shift: float = 0.0
    low: float = -_LARGEST
    high: float = _LARGEST
    only_active: bool = False
    of_largest: bool = False

    def __post_init__(self) -> None:
        if type(self.feature) is not int:
            object.__setattr__(self, "feature", _named(self.feature))
        edit = f"an edit of {_called(self.feature)}"
        for name in ("factor", "shift", "low", "high"):
            number = as_number(getattr(self, name), f"{name} of {edit}")
            if not abs(number) <= _LARGEST:  # NaN is not
                raise ValueError(f"{edit} needs finite float32 numbers, got {number}")
            object.__setattr__(self, name, float(number))  # a float16 would round what it is multiplied with
        for switch in (self.only_active, self.of_largest):
            if not isinstance(switch, bool | np.bool_):
                raise ValueError(f"only_active of {edit} is True or False, got {switch!r}")

    @classmethod
    def set(
        cls, feature: int | str, value: float | None = None, *, times: float | None = None, only_active: bool = False
    ) -> "Edit":
        """Fix the activation at a value, which the field calls clamp.

        >>> steered = sae.steer(x, Edit.set(3, 8.0))
        >>> strong = Edit.set(3, times=2)  # twice its largest activation
        """
        shift, of_largest = _number(feature, value, times)
        return cls(feature, 0.0, shift, only_active=only_active, of_largest=of_largest)

    @classmethod
    def add(
        cls, feature: int | str, amount: float | None = None, *, times: float | None = None, only_active: bool = False
    ) -> "Edit":
        """Raise the activation by an amount.

        >>> steered = sae.steer(x, Edit.add(3, 1.5))
        >>> boosted = sae.steer(x, Edit.add(3, 1.5, only_active=True))
        """
        shift, of_largest = _number(feature, amount, times)
        return cls(feature, shift=shift, only_active=only_active, of_largest=of_largest)

    @classmethod
    def scale(cls, feature: int | str, factor: float, *, only_active: bool = False) -> "Edit":
        """Multiply the activation by a factor; an inactive feature stays inactive.

        >>> steered = sae.steer(x, Edit.scale(3, 0.5))
        """
        return cls(feature, factor, only_active=only_active)

    @classmethod
    def ablate(cls, feature: int | str, *, only_active: bool = False) -> "Edit":
        """Turn the feature off.

        >>> steered = sae.steer(x, Edit.ablate(3))
        """
        return cls(feature, 0.0, only_active=only_active)

    @classmethod
    def cap(
        cls, feature: int | str, high: float | None = None, *, times: float | None = None, only_active: bool = False
    ) -> "Edit":
        """Limit the activation to a largest value.

        >>> steered = sae.steer(x, Edit.cap(3, 2.0))
        """
        high, of_largest = _number(feature, high, times)
        return cls(feature, high=high, only_active=only_active, of_largest=of_largest)


def _named(feature: object) -> int | str:
    """The feature of an edit: its number, or its label."""
    if isinstance(feature, str):
        return as_feature(feature)
    if not isinstance(feature, int | np.integer) or isinstance(feature, bool):
        raise ValueError(f"a feature is a whole number or a label, got {feature!r}")
    return int(feature)


def _called(feature: int | str) -> str:
    return f"feature {shown(feature) if isinstance(feature, str) else feature}"


_IDLE = Edit(0)  # changes nothing


def _number(feature: int | str, number: float | None, times: float | None) -> tuple[float, bool]:
    """The number that a constructor was given, and whether it is a multiple of the largest activation."""
    if number is None and times is None or number is not None and times is not None:
        raise ValueError(f"an edit of {_called(feature)} needs a number or times=, one of them")
    return (number, False) if number is not None else (times, True)  # type: ignore[return-value]


def by_label(requests: Sequence[Sequence[Edit]]) -> bool:
    """Whether an edit names its feature by a label, so that `resolved` needs labels.

    >>> by_label([[Edit.ablate(3)], [Edit.ablate("include")]])
    True
    """
    return any(isinstance(edit.feature, str) for edits in requests for edit in edits)


def in_numbers(edits: Sequence[Edit]) -> bool:
    """Whether `resolved` has nothing to do.

    >>> in_numbers([Edit.set(3, 8.0)]), in_numbers([Edit.set(3, times=2)]), in_numbers([Edit.ablate("include")])
    (True, False, False)
    """
    for edit in edits:  # every call of `SAE.steer` comes here; a generator would cost more
        if edit.of_largest or type(edit.feature) is str:
            return False
    return True


def resolved(
    edits: Sequence[Edit], largest: NDArray[np.float32] | None = None, labels: Mapping[int, str] | None = None
) -> list[Edit]:
    """The same edits in numbers: labels become features, multiples of a feature's largest activation activations.

    Args:
        edits: of features from 0 to d_sae - 1.
        largest: largest activation of each feature, [d_sae]; None where it is not known.
        labels: of features, such as `SAE.labels`; None where they are not known.

    Raises:
        ValueError: an edit needs a largest activation that is not known, or is 0, or its label is not that of one
            feature.

    >>> resolved([Edit.set("a", times=2)], np.array([0, 3], np.float32), {1: "a"}) == [Edit.set(1, 6.0)]
    True
    """
    if in_numbers(edits):
        return list(edits)
    known = Labels(labels) if labels is not None and not isinstance(labels, Labels) else labels
    return [_in_activations(_by_number(edit, known), largest) for edit in edits]


def _by_number(edit: Edit, labels: Labels | None) -> Edit:
    if not isinstance(edit.feature, str):
        return edit
    if labels is None:
        raise ValueError(
            f"{shown(edit.feature)} is a label, and no labels were given; give them, or name the feature by its number"
        )
    return dataclasses.replace(edit, feature=labels.feature(edit.feature))


def _in_activations(edit: Edit, largest: NDArray[np.float32] | None) -> Edit:
    if not edit.of_largest:
        return edit
    feature = int(edit.feature)
    if largest is None:
        raise ValueError(
            f"feature {feature} is edited in multiples of its largest activation, which is not known; measure it: "
            "sae-runtime evaluate BUNDLE --activations PATH --stats"
        )
    check_feature(feature, len(largest))
    unit = float(largest[feature])
    if unit <= 0:
        raise ValueError(
            f"feature {feature} was active on none of the tokens of the bundle's stats, so it has no largest "
            "activation; give its edit a plain number"
        )
    numbers = {name: getattr(edit, name) for name in ("shift", "low", "high")}
    plain: dict[str, Any] = {name: n if abs(n) == _LARGEST else n * unit for name, n in numbers.items()}
    return dataclasses.replace(edit, **plain, of_largest=False)


def without_gate(edit: Edit) -> Edit | None:
    """The edit of every token that does what a plain edit with `only_active` does, or None if there is none.

    An edit that leaves 0 as it is needs nothing. A value v > 0 on these tokens alone is clip(1e30 f, 0, v): 0 stays 0,
    and f is cut to v, for every f from 1e-20 to 1e8.

    >>> without_gate(Edit.set(3, 8.0, only_active=True)).high, without_gate(Edit.add(3, 8.0, only_active=True))
    (8.0, None)
    """
    if not edit.only_active:
        return edit
    at_zero = min(max(edit.shift, edit.low), edit.high)
    if at_zero == 0:
        return dataclasses.replace(edit, only_active=False)
    constant = edit.factor == 0 or (edit.factor > 0 and at_zero == edit.high)
    if constant and abs(at_zero) <= _HIGHEST:
        steep = math.copysign(_STEEP, at_zero)
        return Edit(edit.feature, steep, low=min(at_zero, 0.0), high=max(at_zero, 0.0))
    return None


def edit_arrays(
    requests: Sequence[Sequence[Edit]],
    d_sae: int,
    largest: NDArray[np.float32] | None = None,
    labels: Mapping[int, str] | None = None,
) -> dict[str, NDArray[Any]]:
    """The edits of each request as arrays [requests, e], for the e edits of the longest request.

    Shorter requests are padded with edits of feature 0 that change nothing.

    Args:
        requests: the edits of each request.
        d_sae: number of features.
        largest: largest activation of each feature, [d_sae], for edits in multiples of it.
        labels: of features, for edits that name a feature by its label.

    Returns:
        features i64; scale, shift, low and high f32; only_active bool.

    Raises:
        ValueError: a feature is out of range, or edited twice in one request, or `resolved` refuses an edit.

    >>> edit_arrays([[Edit.set(4, 8.0, only_active=True)], []], d_sae=6)["only_active"].tolist()
    [[True], [False]]
    """
    longest = max(map(len, requests), default=0)
    padded: list[Edit] = []
    for edits in requests:
        plain = resolved(edits, largest, labels)
        seen: set[int | str] = set()
        for edit in plain:
            check_feature(edit.feature, d_sae)
            if edit.feature in seen:
                raise ValueError(f"feature {edit.feature} is edited twice in one request; give one edit for it")
            seen.add(edit.feature)
        padded += [*plain, *[_IDLE] * (longest - len(edits))]
    shape = (len(requests), longest)
    rows = [(edit.factor, edit.shift, edit.low, edit.high) for edit in padded]
    table = np.array(list(zip(*rows, strict=True)), np.float32).reshape(4, *shape)
    scale, shift, low, high = table  # views of contiguous rows, which DLPack needs
    numbers = {"scale": scale, "shift": shift, "low": low, "high": high}
    features = np.array([edit.feature for edit in padded], np.int64).reshape(shape)
    only_active = np.array([edit.only_active for edit in padded], bool).reshape(shape)
    return {"features": features, **numbers, "only_active": only_active}


def as_inputs(
    requests: Sequence[Sequence[Edit]],
    d_sae: int,
    largest: NDArray[np.float32] | None = None,
    labels: Mapping[int, str] | None = None,
) -> dict[str, NDArray[Any]]:
    """The edits of each request as inputs of steer.onnx or of a spliced model, [requests, e].

    Args:
        requests: the edits of each request.
        d_sae: number of features.
        largest: largest activation of each feature, [d_sae], for edits in multiples of it.
        labels: of features, for edits that name a feature by its label.

    Raises:
        ValueError: as `edit_arrays`, or these inputs cannot say that an edit is `only_active`.

    >>> as_inputs([[Edit.set(4, 8.0)], []], d_sae=6)["features"].tolist()
    [[4], [0]]
    """
    plain = [[_for_graph(edit) for edit in resolved(edits, largest, labels)] for edits in requests]
    arrays = edit_arrays(plain, d_sae)
    del arrays["only_active"]
    return arrays


def _for_graph(edit: Edit) -> Edit:
    if (plain := without_gate(edit)) is None:
        raise ValueError(
            f"a graph's inputs cannot say that this edit of feature {edit.feature} is only where it is active; give a "
            f"spliced model the edit without only_active, and sae_when [[{edit.feature}]] with sae_above [[0.0]]"
        )
    return plain


def check_feature(feature: int | str, d_sae: int) -> None:
    """Raise ValueError if an SAE of so many features has no such one.

    >>> check_feature(3, 8)
    """
    if isinstance(feature, str) or not 0 <= feature < d_sae:
        raise ValueError(f"feature {feature} does not exist, expected 0 to {d_sae - 1}")
