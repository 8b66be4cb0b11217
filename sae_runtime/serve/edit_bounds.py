"""Refuses the edits of one SAE that a server's policy does not allow."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.edits import Edit, check_feature
from sae_runtime.core.labels import as_feature, shown
from sae_runtime.serve.edit_kinds import kind_of, strength_of
from sae_runtime.serve.policy import Policy

_ROUNDING = 1e-6  # a multiple becomes an activation in float32
Largest = Callable[[], NDArray[np.float32] | None]


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

    def check(self, edits: Sequence[Edit], gate: NDArray[Any] | None = None) -> None:
        """Raise ValueError if the policy refuses one of the edits of a request.

        Args:
            edits: in numbers, as `resolved` gives them.
            gate: how much of the edits each token gets; None: at most all. It multiplies an edit, so it is bounded too.

        Raises:
            ValueError: the message names the feature and the bound.
        """
        policy = self.policy
        edits = [edit for edit in edits if kind_of(edit) != "none"]
        if not edits or not policy.bounded:
            return
        if not policy.edits:
            raise ValueError("this server takes no edits; send the request without them")
        if gate is not None and not ((gate >= 0) & (gate <= 1)).all():  # NaN is not
            raise ValueError("this server bounds edits, so a gate is from 0 to 1; scale the edit and not the gate")
        allow, refuse = (self._numbers(entries) for entries in self._lists)
        for edit in edits:
            feature = int(edit.feature)
            check_feature(feature, self._d_sae)
            if feature in refuse or (policy.allow_feature and feature not in allow):
                raise ValueError(f"feature {feature} may not be edited on this server; edit another one")
            kind = kind_of(edit)
            if policy.edit_kind and kind not in policy.edit_kind:
                what = "is of no single kind" if kind is None else f"is {kind!r}"
                allowed = ", ".join(policy.edit_kind)
                raise ValueError(f"the edit of feature {feature} {what}, and this server allows {allowed}")
            self._check_strength(edit, feature)

    def _check_strength(self, edit: Edit, feature: int) -> None:
        """Where both ends of the clip are within the bound, no factor leads beyond it."""
        bound = self.policy.largest_edit
        if self.policy.largest_multiple < math.inf:
            bound = min(bound, self.policy.largest_multiple * float(self._known_largest()[feature]))
        if bound < math.inf and -bound <= edit.low <= edit.high <= bound:
            return
        factor = min(self.policy.largest_factor, self.policy.largest_multiple)
        for what, number, most in (("sets or adds", strength_of(edit), bound), ("scales by", abs(edit.factor), factor)):
            if number > most * (1 + _ROUNDING):
                raise ValueError(
                    f"the edit of feature {feature} {what} {number:.6g}, and this server allows at most {most:.6g}"
                )

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


def _own(entry: str, names: Collection[str], elsewhere: Collection[str]) -> str | None:
    """An entry of a list without the name before it; None where that is another SAE's."""
    name, colon, feature = entry.partition(":")
    if not colon or name not in (*names, *elsewhere):
        return entry
    return feature if name in names else None
