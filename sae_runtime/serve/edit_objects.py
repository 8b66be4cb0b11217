"""Edits of features as JSON, in the one form that every protocol takes.

{"edits": [{"feature": 12, "set": 8.0}, {"feature": "a label", "add": "x2"}], "gate": "text", "features": 5}
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sae_runtime.core.edits import Edit
from sae_runtime.core.gates import WORDS, Gate, as_gate, spans
from sae_runtime.core.labels import shown
from sae_runtime.serve import json_text
from sae_runtime.serve.errors import Invalid, TooLarge
from sae_runtime.serve.limits import Limits

_KINDS = ("set", "add", "scale", "ablate", "cap")
_KEYS = ("feature", *_KINDS, "only_active", "sae")
_LONGEST = 64  # characters of "x2"
MOST_FEATURES = 100  # of a token that an answer shows
_MOST_PLACES = 4096  # positions or spans of a gate


@dataclass(frozen=True)
class SaeObject:
    """What a caller asks of the SAEs of a model.

    Attributes:
        edits: those of the model's only SAE under None, those of others by the name of the SAE.
        gate: which tokens the edits reach.
        features: how many features of each token the answer shows.
    """

    edits: Mapping[str | None, Sequence[Edit]] = field(default_factory=dict)
    gate: Gate = "all"
    features: int = 0


def read_sae_object(given: Any, limits: Limits) -> SaeObject:
    """What a `sae` object of JSON asks.

    Args:
        given: the decoded object, or None.
        limits: of the server.

    Raises:
        Invalid: it has another form.

    >>> read_sae_object({"edits": [{"feature": 12, "set": 8}], "gate": [0, 3]}, Limits())
    SaeObject(edits={None: [Edit(feature=12, ...)]}, gate=Positions(numbers=(0, 3)), features=0)
    """
    if given is None:
        return SaeObject()
    if not isinstance(given, dict):
        raise Invalid(f'sae is an object such as {{"edits": [...]}}, got {_kind(given)}; give one')
    _refuse_unknown(given, ("edits", "gate", "features"), "sae")
    features = given.get("features", 0)
    if type(features) is not int or not 0 <= features <= MOST_FEATURES:
        raise Invalid(f"features is a whole number from 0 to {MOST_FEATURES}, got {_said(features)}; give one")
    return SaeObject(read_edits(given.get("edits", []), limits), read_gate(given.get("gate", "all")), features)


def read_edits(given: Any, limits: Limits) -> dict[str | None, list[Edit]]:
    """A list of edits of JSON, by SAE.

    Raises:
        Invalid: an edit has another form.
        TooLarge: there are more than the server takes.

    >>> read_edits([{"feature": "include", "add": "x2", "sae": "sae"}], Limits())["sae"][0].of_largest
    True
    """
    if not isinstance(given, list):
        raise Invalid(f'edits is a list such as [{{"feature": 12, "set": 8.0}}], got {_kind(given)}; give one')
    limits.check(edits=len(given))
    found: dict[str | None, list[Edit]] = {}
    for number, one in enumerate(given):
        try:
            sae, edit = _edit(one)
        except ValueError as error:
            raise Invalid(f"edit {number}: {error}") from None
        found.setdefault(sae, []).append(edit)
    return found


def read_gate(given: Any) -> Gate:
    """A gate of JSON: a word, a list of positions, or `{"spans": [[0, 8]]}`.

    Raises:
        Invalid: it has another form.

    >>> read_gate([3, 0]), read_gate("text")
    (Positions(numbers=(0, 3)), 'text')
    """
    places = given.get("spans") if isinstance(given, dict) and list(given) == ["spans"] else given
    if isinstance(places, list) and len(places) > _MOST_PLACES:
        raise TooLarge(f"a gate of {len(places)} places was given, and a server takes {_MOST_PLACES}; give fewer")
    try:
        if isinstance(given, dict):
            if not isinstance(places, list):
                raise Invalid('a gate that is an object is {"spans": [[first, end], ...]}; give it so')
            return spans(*places)
        if not isinstance(given, str | list):
            raise Invalid(f"a gate is a word or a list of positions, got {_kind(given)}; give one")
        return as_gate(given)
    except Invalid:
        raise
    except (TypeError, ValueError) as error:
        if isinstance(given, dict):
            raise Invalid(str(error)) from None
        words = ", ".join(WORDS)
        raise Invalid(
            f'a gate is one of {words}, a list of positions, or {{"spans": [[first, end], ...]}}, got {_said(given)}; '
            "give one"
        ) from None


def edits_of_text(text: str, limits: Limits) -> dict[str | None, list[Edit]]:
    """Edits of a tensor: JSON, a list or an object with the key edits alone, since a gate is a tensor of its own.

    Raises:
        Invalid: it is none.

    >>> edits_of_text('{"edits": [{"feature": 3, "add": 2}]}', Limits())
    {None: [Edit(feature=3, ...)]}
    """
    given = json_text.read(text, "edits")
    if isinstance(given, dict):
        _refuse_unknown(given, ("edits",), "the input edits")
        given = given.get("edits", [])
    return read_edits(given, limits)


def _edit(given: Any) -> tuple[str | None, Edit]:
    """The SAE of an edit, and the edit."""
    if not isinstance(given, dict):
        raise Invalid(f'an edit is an object such as {{"feature": 12, "set": 8.0}}, got {_kind(given)}; give one')
    _refuse_unknown(given, _KEYS, "an edit")
    feature, sae, only_active = given.get("feature"), given.get("sae"), given.get("only_active", False)
    if not isinstance(feature, int | str) or isinstance(feature, bool):
        raise Invalid(f"feature is a whole number or a label, got {_said(feature)}; give one")
    if isinstance(feature, int) and not 0 <= feature < 2**31:
        raise Invalid(f"feature is a whole number from 0 on, got {_said(feature)}; give one of the SAE")
    if sae is not None and not isinstance(sae, str):
        raise Invalid(f"sae is the name of an SAE, got {_said(sae)}; give one")
    if not isinstance(only_active, bool):
        raise Invalid(f"only_active is true or false, got {_said(only_active)}; give one")
    kinds = [kind for kind in _KINDS if kind in given]
    if len(kinds) != 1:
        raise Invalid(f"an edit has one of {', '.join(_KINDS)}, got {', '.join(kinds) or 'none'}; give one")
    (kind,) = kinds
    value = given[kind]
    if kind == "ablate":
        if value is not True:
            raise Invalid(f"ablate is true, got {_said(value)}; leave the edit out, or give true")
        return sae, Edit.ablate(feature, only_active=only_active)
    number, times = _number(kind, value)
    if kind == "scale":
        return sae, Edit.scale(feature, number, only_active=only_active)
    amount: dict[str, float] = {"times": number} if times else {}
    plain = [] if times else [number]
    make: Callable[..., Edit] = getattr(Edit, kind)
    return sae, make(feature, *plain, **amount, only_active=only_active)


def _number(kind: str, value: Any) -> tuple[float, bool]:
    """A number, and whether it is a multiple of the feature's largest activation."""
    times = isinstance(value, str) and kind != "scale" and value[:1] in ("x", "X") and len(value) <= _LONGEST
    number = math.nan
    if times or type(value) in (int, float):
        try:
            number = float(value[1:] if times else value)
        except (ValueError, OverflowError):
            pass
    if not abs(number) <= np.finfo(np.float32).max:
        form = "a finite number" if kind == "scale" else 'a finite number, or "x2" for twice the largest activation'
        raise Invalid(f"{kind} takes {form}, got {_said(value)}; give one")
    return number, times


def _refuse_unknown(given: Mapping[Any, Any], keys: Sequence[str], what: str) -> None:
    for key in given:
        if key not in keys:
            raise Invalid(f"{what} has no key {shown(key)}; the keys are {', '.join(keys)}")


def _said(value: Any) -> str:
    """A value of a caller in a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _kind(value) if isinstance(value, dict | list) else shown(value)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a bool", type(None): "null"}
    return kinds.get(type(value), "a number")
