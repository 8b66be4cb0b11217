"""What callers may edit: bounds, kinds and features, as whoever runs the server has set them."""

import math
from dataclasses import dataclass, field
from typing import Any

from sae_runtime.core.labels import as_feature, shown

_LIMITS = ("largest_edit", "largest_multiple", "largest_factor")
KINDS = ("add", "set", "scale", "ablate", "cap")


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
