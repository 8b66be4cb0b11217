"""JSON of strangers, read strictly, and JSON of answers."""

import json
from typing import Any

from sae_runtime.serve.errors import Invalid, TooLarge

LARGEST = 16 << 20
"""Bytes of JSON in a request. Python reads it in one piece while everybody waits; larger arrays travel as binary."""


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body; errors are those of `read`.

    >>> read_object(b'{"id": "7"}')
    {'id': '7'}
    """
    value = read(body, "the body")
    if not isinstance(value, dict):
        raise Invalid(f"the body must be a JSON object, got {type(value).__name__}; send an object")
    return value


def read(text: bytes | str, what: str) -> Any:
    """The value of a text of JSON. NaN, a name that stands twice, half of a character and endless nesting are refused.

    Raises:
        Invalid: it is none.
        TooLarge: it is longer than `LARGEST`.

    >>> read("[1]", "the input edits")
    [1]
    """
    if len(text) > LARGEST:
        raise TooLarge(f"the JSON has {len(text)} bytes, at most {LARGEST} are read; send arrays as binary tensors")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = _DECODER.decode(decoded)
        if "\\u" in decoded:  # by which JSON can hold half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{what} is not readable JSON ({_short(error)}); mend it") from None
    return value


def to_bytes(value: Any) -> bytes:
    """The bytes of a JSON value.

    Raises:
        Invalid: it holds NaN or Inf, which JSON does not have.

    >>> to_bytes({"a": [1, 0.5]})
    b'{"a":[1,0.5]}'
    """
    try:
        return _ENCODER.encode(value).encode()
    except ValueError:
        raise Invalid("the answer holds NaN or Inf, which JSON does not have; ask for it as binary") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


def _constant(text: str) -> Any:
    raise ValueError(f"JSON has no {text}")


def _short(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "too many lists inside one another"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair"
    return str(error)[:200]


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
