"""What callers may edit: bounds, kinds and features, as whoever runs the server has set them."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sae_runtime.core.edits import Edit, edit_arrays
from sae_runtime.core.labels import as_feature, shown

_LIMITS = ("largest_edit", "largest_multiple", "largest_factor")
KINDS = ("add", "set", "scale", "ablate", "cap")
_LARGEST = float(np.finfo(np.float32).max)
_ROUNDING = 1e-6  # a multiple becomes an activation in float32
_NOT_CHANGED = {"scale": 1.0, "shift": 0.0, "low": -_LARGEST, "high": _LARGEST}

Largest = Callable[[], NDArray[np.float32] | None]


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


def _limit(help: str) -> Any:
    return _setting(math.inf, f"{help}; none: no limit", or_none=True)


@dataclass(frozen=True)
class Policy:
    """Bounds for the edits of every caller. The default allows all edits.

    An edit is f' = clip(scale f + shift, low, high). Its strength is the activation that it gives a feature with f = 0:
    the value of `set`, the amount of `add`, and 0 for `scale`, `ablate` and a `cap` above 0.

    Raises:
        ValueError: a bound is negative or NaN, a kind is unknown, or a feature is neither a number nor a label.

    >>> Policy(largest_multiple=4.0, edit_kind=("add", "set")).bounded
    True
    """

    edits: bool = _setting(True, "whether callers may edit features")
    largest_edit: float = _limit("largest activation that an edit may set or add")
    largest_multiple: float = _limit("the same in multiples of the feature's largest activation, and the largest scale")
    largest_factor: float = _limit("largest factor of scale")
    edit_kind: tuple[str, ...] = _setting((), "kind of edit that is allowed; without it, all", choices=KINDS)
    allow_feature: tuple[str, ...] = _setting((), "feature, by number or label, that may be edited; without it, all")
    refuse_feature: tuple[str, ...] = _setting((), "feature, by number or label, that may not be edited")

    def __post_init__(self) -> None:
        for name in _LIMITS:
            if not getattr(self, name) >= 0:  # NaN is not
                raise ValueError(f"{name} is a number from 0 on, or none, got {getattr(self, name)}")
        if unknown := [kind for kind in self.edit_kind if kind not in KINDS]:
            raise ValueError(f"an edit is one of {', '.join(KINDS)}, got {shown(unknown[0])}")
        for entry in (*self.allow_feature, *self.refuse_feature):
            as_feature(entry)

    @property
    def bounded(self) -> bool:
        """Whether some edit may be refused."""
        lists = self.edit_kind or self.allow_feature or self.refuse_feature
        return not self.edits or bool(lists) or min(getattr(self, name) for name in _LIMITS) < math.inf


class Guard:
    """The policy for the edits of one SAE.

    Args:
        policy: of the server.
        d_sae: number of features.
        names: under which an entry such as `NAME:12` means this SAE alone: the served model's, and the SAE's in it.
        elsewhere: the names of all others that are served, whose entries are not for this SAE.
        largest: gives the largest activation of each feature, [d_sae]; None where it is not known.
        labels: gives the labels of features as they are now.

    >>> guard = Guard(Policy(refuse_feature=("3",)), 8)
    >>> guard.check([Edit.set(2, 8.0)])
    >>> guard.check([Edit.set(3, 8.0)])
    Traceback (most recent call last):
    ValueError: feature 3 may not be edited on this server; edit another one
    """

    def __init__(
        self,
        policy: Policy,
        d_sae: int,
        *,
        names: Collection[str] = (),
        elsewhere: Collection[str] = (),
        largest: Largest = lambda: None,
        labels: Callable[[], Mapping[int, str]] = dict,
    ) -> None:
        self.policy, self._d_sae, self._largest, self._labels = policy, d_sae, largest, labels
        self._lists = [
            [as_feature(own) for entry in entries if (own := _own(entry, names, elsewhere)) is not None]
            for entries in (policy.allow_feature, policy.refuse_feature)
        ]

    def check_start(self) -> None:
        """Find out at the start what would make every edit fail.

        Raises:
            ValueError: a feature is out of range, no feature has a label, or a bound needs a largest activation that is
                not known.
        """
        for entries in self._lists:
            self._numbers(entries)
        if self.policy.edits and self.policy.largest_multiple < math.inf:
            self._known_largest()

    def check(self, edits: Sequence[Edit]) -> None:
        """Raise ValueError if the policy refuses one of the edits of a request.

        Args:
            edits: in numbers, as `resolved` gives them.

        Raises:
            ValueError: the message names the feature and the bound.
        """
        if edits and self.policy.bounded:
            arrays = edit_arrays([edits], self._d_sae)
            arrays.pop("only_active")
            self.check_arrays(**arrays)

    def check_arrays(self, features: NDArray[np.int64], gate: ArrayLike | None = None, **numbers: NDArray[Any]) -> None:
        """The same for the inputs of steer.onnx.

        Args:
            features: [b or 1, e].
            gate: how much of the edits each token gets; None: all. It multiplies an edit, so bounds hold it to [0, 1].
            numbers: scale, shift, low and high, [b or 1, e]; an edit without them changes nothing.

        Raises:
            ValueError: as `check`.
        """
        policy = self.policy
        if not policy.bounded:
            return
        given = [np.asarray(numbers.get(name, none), np.float64) for name, none in _NOT_CHANGED.items()]
        wide = np.broadcast_arrays(features, *given)
        ids = wide[0].reshape(-1)
        scale, shift, low, high = (array.reshape(-1) for array in wide[1:])
        idle = (scale == 1) & (shift == 0) & (low <= -_LARGEST) & (high >= _LARGEST)  # such as what pads shorter lists
        ids, scale, shift, low, high = (array[~idle] for array in (ids, scale, shift, low, high))
        if not len(ids):
            return
        if not policy.edits:
            raise ValueError("this server takes no edits; send the request without them")
        if len(wrong := ids[(ids < 0) | (ids >= self._d_sae)]):
            raise ValueError(f"feature {wrong[0]} does not exist, expected 0 to {self._d_sae - 1}")
        if gate is not None and not _within_one(np.asarray(gate)):
            raise ValueError("this server bounds edits, so a gate is from 0 to 1; scale the edit and not the gate")
        self._check_features(ids)
        self._check_kinds(ids, scale, shift, low, high)
        self._check_strength(ids, scale, shift, low, high)

    def _check_features(self, ids: NDArray[np.int64]) -> None:
        allow, refuse = (self._numbers(entries) for entries in self._lists)
        for feature in ids.tolist():
            if feature in refuse or (self.policy.allow_feature and feature not in allow):
                raise ValueError(f"feature {feature} may not be edited on this server; edit another one")

    def _check_kinds(self, ids: NDArray[np.int64], *numbers: NDArray[np.float64]) -> None:
        if not self.policy.edit_kind:
            return
        for feature, *edit in zip(ids.tolist(), *(array.tolist() for array in numbers), strict=True):
            kind = kind_of(*edit)
            if kind not in self.policy.edit_kind:
                what = f"is {kind!r}" if kind else "is of no single kind"
                allowed = ", ".join(self.policy.edit_kind)
                raise ValueError(f"the edit of feature {feature} {what}, and this server allows {allowed}")

    def _check_strength(
        self,
        ids: NDArray[np.int64],
        scale: NDArray[np.float64],
        shift: NDArray[np.float64],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
    ) -> None:
        """Where both ends of the clip are within the bound, no factor leads beyond it."""
        policy = self.policy
        bound = np.full(len(ids), policy.largest_edit)
        if policy.largest_multiple < math.inf:
            bound = np.minimum(bound, policy.largest_multiple * self._known_largest()[ids].astype(np.float64))
        bound = bound * (1 + _ROUNDING)
        strength = np.abs(np.minimum(np.maximum(shift, low), high))
        clipped = np.isfinite(bound) & (low >= -bound) & (high <= bound) & (low <= high)
        # A comparison with NaN is false.
        factor = min(policy.largest_factor, policy.largest_multiple)
        weak = (strength <= bound) & (np.abs(scale) <= factor * (1 + _ROUNDING))
        finite = np.isfinite(scale) & np.isfinite(shift)
        refused = np.flatnonzero(~(finite & (weak | clipped)))
        if len(refused):
            first = int(refused[0])
            feature = int(ids[first])
            if not strength[first] <= bound[first]:
                what, most = f"sets or adds {strength[first]:.6g}", bound[first] / (1 + _ROUNDING)
            else:
                what, most = f"scales by {scale[first]:.6g}", factor
            raise ValueError(f"the edit of feature {feature} {what}, and this server allows at most {most:.6g}")

    def _known_largest(self) -> NDArray[np.float32]:
        largest = self._largest()
        if largest is None:
            raise ValueError(
                "this server bounds edits in multiples of a feature's largest activation, which is not known; measure "
                "it: sae-runtime evaluate BUNDLE --activations PATH --stats"
            )
        return largest

    def _numbers(self, entries: Sequence[int | str]) -> set[int]:
        """The features of a list; a label means all features that have it."""
        numbers = {entry for entry in entries if isinstance(entry, int)}
        if unknown := [number for number in numbers if not 0 <= number < self._d_sae]:
            raise ValueError(f"the server's list of features names {unknown[0]}, expected 0 to {self._d_sae - 1}")
        if wanted := {entry for entry in entries if isinstance(entry, str)}:
            labels = self._labels()
            having = {feature: label for feature, label in labels.items() if label in wanted}
            if missing := sorted(wanted - set(having.values())):
                raise ValueError(
                    f"the server's list of features names the label {shown(missing[0])}, which no feature has; correct "
                    "the list or labels.jsonl"
                )
            numbers |= set(having)
        return numbers


def kind_of(scale: float, shift: float, low: float, high: float) -> str | None:
    """The kind of an edit, by its numbers; None if it is of no single kind.

    >>> kind_of(0.0, 8.0, -_LARGEST, _LARGEST), kind_of(1.0, 0.0, -_LARGEST, 4.0), kind_of(2.0, 1.0, 0.0, 4.0)
    ('set', 'cap', None)
    """
    free = low <= -_LARGEST, high >= _LARGEST
    if scale == 1 and shift == 0 and free == (True, False):
        return "cap"
    if free != (True, True):
        return None
    if scale == 0:
        return "set" if shift else "ablate"
    if scale == 1:
        return "add"
    return "scale" if shift == 0 else None


def _own(entry: str, names: Collection[str], elsewhere: Collection[str]) -> str | None:
    """An entry of a list without the name before it; None where that is another SAE's."""
    name, colon, feature = entry.partition(":")
    if not colon or name not in (*names, *elsewhere):
        return entry
    return feature if name in names else None


def _within_one(gate: NDArray[Any]) -> bool:
    return gate.dtype.kind in "biuf" and bool(((gate >= 0) & (gate <= 1)).all())  # NaN is not
