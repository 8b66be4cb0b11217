"""The options of every command that edits features: --set, --add, --scale, --ablate, --cap and --only-active."""

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli.options import Decorator, gathered
from sae_runtime.core.labels import as_feature, shown

if TYPE_CHECKING:
    from sae_runtime.core.edits import Edit

HINT = "Give an edit: --set, --add, --scale, --ablate or --cap."


class Feature(click.ParamType):  # type: ignore[type-arg]  # generic only in later versions of click
    """A feature's number, or its label."""

    name = "feature"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number or the label that a text is."""
        try:
            return as_feature(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """The values in an environment variable, split at blanks as a shell splits them."""
        try:
            return shlex.split(rv)
        except ValueError as error:
            self.fail(f"{shown(rv)} is not quoted as a shell needs it ({error}).")


class Change(Feature):
    """FEATURE=NUMBER; where multiples are allowed, FEATURE=xNUMBER is one of the feature's largest activation.

    Its value is the feature, the number, and whether this is a multiple. A label may hold the sign =: the last one
    counts.
    """

    name = "feature=number"

    def __init__(self, *, multiples: bool) -> None:
        self.multiples = multiples

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parts of the text."""
        feature, _, text = str(value).rpartition("=")
        text = text.strip()
        times = self.multiples and text[:1] in ("x", "X")
        try:
            number = float(text[times:])
        except ValueError:
            number = None
        if number is None or not feature.strip():
            examples = "12=8.0, include=8.0 or include=x2" if self.multiples else "12=0.5 or include=0.5"
            self.fail(f"{shown(value)} is not FEATURE=NUMBER, such as {examples}.", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{shown(value)} needs a finite number.", param, ctx)
        return super().convert(feature, param, ctx), number, times


def _change(verb: str, help: str, *, multiples: bool = True) -> Decorator[Any]:
    kind = Change(multiples=multiples)
    return click.option(f"--{verb}", multiple=True, metavar="FEATURE=NUMBER", type=kind, help=help)


def _edits(ablate: Sequence[int | str], only_active: bool, **changes: Sequence[tuple[int | str, float, bool]]) -> Any:
    from sae_runtime.core.edits import Edit

    made = [Edit.ablate(feature, only_active=only_active) for feature in ablate]
    for verb, given in changes.items():
        for feature, number, times in given:
            amount = {"times": number} if times else {}
            made.append(getattr(Edit, verb)(feature, *([] if times else [number]), **amount, only_active=only_active))
    return made


edits = gathered(
    "edits",
    _edits,
    {
        "set": _change("set", "the feature has this value (clamp); 12=x2: twice its largest activation"),
        "add": _change("add", "its value is raised by this, or by 12=xNUMBER"),
        "scale": _change("scale", "it is stronger or weaker by this factor, where it is active", multiples=False),
        "ablate": click.option("--ablate", multiple=True, type=Feature(), metavar="FEATURE", help="it is off"),
        "cap": _change("cap", "its value is at most this, or 12=xNUMBER"),
        "only_active": click.option(
            "--only-active", is_flag=True, help="edit a feature only on the tokens where it is active"
        ),
    },
)
"""Gives a command these options, and hands it the list of `Edit` that they make; FEATURE is a number or a label."""


def found(edits: Sequence["Edit"], plain: Sequence["Edit"]) -> list[tuple[str, str]]:
    """Lines for `Run.show` on the features that edits name by a label; `plain` are the same edits by number."""
    pairs = [(edit.feature, by_number.feature) for edit, by_number in zip(edits, plain, strict=True)]
    return [("", f"{shown(feature)} is feature {number}") for feature, number in pairs if isinstance(feature, str)]
