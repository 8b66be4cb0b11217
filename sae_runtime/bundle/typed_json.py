"""JSON to checked Python values: dataclasses, tuples, mappings and plain types.

Every JSON file of the project is read by `read_file`, and every text of JSON by `read_json`. They refuse what JSON does
not have or programs read differently: NaN and Infinity, a name that an object has twice, nesting without end, and
numbers beyond float64. A field of type int holds an int64, and a field of type str no NUL and no half of a character.
`foreign` text is read as its makers write and read it: pandas and PyTorch write NaN, editors of Windows a byte order
mark. Whoever uses a number of it looks whether the number is finite.
"""

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_runtime.bundle.regular import LARGEST_JSON, read_bytes

_DEEPEST = 64  # objects and lists inside one another
_DIGITS = 40  # of a whole number; the state of a random generator has 39


def read_json(
    kind: Any,
    text: str | bytes,
    where: str,
    *,
    more: bool = False,
    foreign: bool = False,
    version: int | None = None,
    field: str = "schema_version",
) -> Any:
    """Read the value of a JSON text as `kind`.

    Args:
        kind: the type of the value; see `from_dict`.
        text: the text.
        where: the name of the value in messages.
        more: see `from_dict`.
        foreign: another program wrote the text: a byte order mark is dropped, NaN, Infinity and numbers of any size are
            read, of a name that stands twice the last one counts.
        version: see `read_file`.
        field: see `read_file`.

    Raises:
        ValueError: the text is not JSON, or its value is of another type or version.

    >>> read_json(tuple[int, ...], "[1, 2]", "sizes")
    (1, 2)
    >>> read_json(dict[str, float], '{"share": NaN}', "a row", foreign=True)
    {'share': nan}
    >>> read_json(int, "[1", "size")
    Traceback (most recent call last):
    ValueError: size is not readable JSON (Expecting ',' delimiter: line 1 column 3 (char 2))
    >>> read_json(dict[str, int], '{"schema_version": 1}', "the plan", version=2)
    Traceback (most recent call last):
    ValueError: the plan has schema version 1, this sae-runtime reads 2
    """
    value = _parsed(text, where, foreign=foreign)
    if version is not None:
        written = value.get(field) if isinstance(value, dict) else None
        if type(written) is not int or written != version:
            name = field.replace("_", " ")
            raise ValueError(f"{where} has {name} {shown(written)}, this sae-runtime reads {version}")
    return from_dict(kind, value, where, more=more)


def read_file(
    kind: Any,
    path: Path,
    where: str | None = None,
    *,
    more: bool = False,
    foreign: bool = False,
    version: int | None = None,
    field: str = "schema_version",
    most: int = LARGEST_JSON,
) -> Any:
    """Read the value of a JSON file as `kind`.

    Args:
        kind: the type of the value; see `from_dict`.
        path: the file; a regular one.
        where: the name of the value in messages; None: the path.
        more: see `from_dict`.
        foreign: see `read_json`.
        version: the version of the format that `kind` describes, checked before the other fields; None: it has none.
        field: the field that holds the version.
        most: largest size of the file in bytes.

    Raises:
        OSError: the file does not exist or may not be read.
        ValueError: it is no regular file, is too large, is not JSON, or its value is of another type or version.

    >>> _ = Path("plan.json").write_text('{"rows": 3}')
    >>> read_file(dict[str, int], Path("plan.json"))
    {'rows': 3}
    """
    where = str(path) if where is None else where
    text = read_bytes(path, most=most)
    return read_json(kind, text, where, more=more, foreign=foreign, version=version, field=field)


def from_dict(kind: Any, value: Any, where: str, *, more: bool = False) -> Any:
    """Convert a value of json.loads to `kind`.

    Args:
        kind: a dataclass, X | None, tuple[X, ...], Mapping[str, X], a plain type such as int, or Any for any value.
        value: the value.
        where: the name of the value in messages; the name of a field is added to it.
        more: accept fields that a dataclass does not have, and leave them out.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message names its path.

    >>> @dataclasses.dataclass
    ... class Shard:
    ...     file: str
    ...     rows: int
    >>> from_dict(tuple[Shard, ...], [{"file": "a", "rows": 3}], "shards")
    (Shard(file='a', rows=3),)
    >>> from_dict(tuple[Shard, ...], [{"file": "a", "rows": "3"}], "shards")
    Traceback (most recent call last):
    ValueError: shards[0].rows must be int, got '3'
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where, more=more)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else from_dict(arguments[0], value, where, more=more)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {shown(value)}")
        return tuple(from_dict(arguments[0], v, f"{where}[{i}]", more=more) for i, v in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {shown(value)}")
        return {
            from_dict(str, key, f"a name in {where}"): from_dict(arguments[1], v, f"{where}.{key}", more=more)
            for key, v in value.items()
        }
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, got {shown(value)}")
    if kind is int and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{where} must be an int of 64 bits, got {shown(value)}")
    if kind is str and ("\0" in value or not _is_whole(value)):
        raise ValueError(f"{where} must be text without NUL and surrogates, got {shown(value)}")
    return value


def to_text(value: Any, *, indent: int | None = None, other: Callable[[Any], Any] | None = None) -> str:
    """The JSON text of a value. Numbers that are not finite, which JSON does not have, become null.

    Args:
        value: dicts, lists, tuples and plain values.
        indent: spaces of each level; None: one line.
        other: makes a JSON value of any other object.

    >>> to_text({"fvu": float("nan"), "l0": 4.0})
    '{"fvu": null, "l0": 4.0}'
    """
    try:
        return json.dumps(value, indent=indent, default=other, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, default=other, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: object) -> str:
    """The text of a value in messages, cut after 80 characters.

    >>> shown("7")
    "'7'"
    """
    try:
        return ascii(value)[:80]
    except ValueError:  # Python refuses to print a whole number of thousands of digits
        return "a number that is far too large"


def _parsed(text: str | bytes, where: str, *, foreign: bool) -> Any:
    hooks: dict[str, Any] = {"parse_int": _any_whole_number}
    if not foreign:
        hooks = {"object_pairs_hook": _object, "parse_constant": _constant, "parse_float": _float}
        hooks["parse_int"] = _whole_number
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text.removeprefix("\ufeff") if foreign else text, **hooks)
        level = [value]
        for _ in range(_DEEPEST):
            inside = [v for v in level if isinstance(v, dict | list)]
            level = [part for v in inside for part in (v.values() if isinstance(v, dict) else v)]
            if not level:
                return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable JSON ({error})") from error
    raise ValueError(f"{where} is not readable JSON (more than {_DEEPEST} objects and lists inside one another)")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {shown(twice)} stands twice in one object")
    return made


def _constant(text: str) -> float:
    raise ValueError(f"JSON has no {text}; write null")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is beyond float64")
    return number


def _whole_number(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits, at most {_DIGITS} are read")
    return int(text)


def _any_whole_number(text: str) -> int | float:
    return int(text) if len(text) <= _DIGITS else float(text)


def _is_whole(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON can hold one half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_hints = functools.cache(typing.get_type_hints)  # which evaluates annotations anew each time


def _dataclass(kind: Any, value: Any, where: str, *, more: bool) -> Any:
    hints = _hints(kind)
    fields = value if isinstance(value, dict) else {}
    problems = [] if fields is value else [f"got {shown(value)}"]
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        problems += [f"{field.name} is missing"] if required and field.name not in fields else []
    problems += [f"{name} is unknown" for name in fields if name not in hints and not more]
    if problems:
        raise ValueError(f"{where} must have the fields {', '.join(hints)}, {problems[0]}")
    known = {name: v for name, v in fields.items() if name in hints}
    return kind(**{name: from_dict(hints[name], v, f"{where}.{name}", more=more) for name, v in known.items()})
