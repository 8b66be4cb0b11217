"""The type of a column whose values come from files of any kind: the same in all parts, by all of its values."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

_INT64 = 1 << 63
_EXACT = 1 << 53  # the whole numbers up to it are exact in float64


class Kind:
    """What the values of a column were so far.

    >>> kind = Kind()
    >>> for value in (None, 3, 2.5):
    ...     kind.see(value)
    >>> kind.name
    'float64'
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def see(self, value: Any) -> None:
        """Take a value into account."""
        if value is not None:
            self._seen.add(_kind(value))

    @property
    def name(self) -> str:
        """`bool`, `int64`, `float64` or `string`, which holds anything else as text or JSON."""
        if self._seen == {"exact", "float64"}:
            return "float64"
        if self._seen and self._seen <= {"exact", "int64"}:
            return "int64"
        return next(iter(self._seen)) if len(self._seen) == 1 else "string"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "exact" if abs(value) <= _EXACT else "int64" if -_INT64 <= value < _INT64 else "string"
    return "float64" if isinstance(value, float) else "string"


def as_kind(values: Iterable[Any], kind: str) -> Sequence[Any]:
    """Values as a column of this kind holds them; null stays null.

    >>> as_kind(["a", 3, None, ["b"]], "string")
    ['a', '3', None, '["b"]']
    """
    if kind != "string":
        return [float(value) if kind == "float64" and value is not None else value for value in values]
    return [value if value is None else whole(_text(value)) for value in values]


def whole(text: str) -> str:
    r"""A text that UTF-8 can hold: half a character, as JSON and names of files may have, becomes its escape.

    >>> whole("a\udc80"), whole("é")
    ('a\\udc80', 'é')
    """
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _text(value: Any) -> str:
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)
