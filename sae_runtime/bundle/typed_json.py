"""JSON to checked Python values: dataclasses, tuples, mappings and plain types.

Every JSON file of the project is read by `read_json` or `read_versioned`.
"""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any


def read_json(kind: Any, text: str | bytes, where: str, *, more: bool = False) -> Any:
    """Read the value of a JSON text as `kind`.

    Args:
        kind: the type of the value; see `from_dict`.
        text: the text.
        where: the name of the value in messages.
        more: see `from_dict`.

    Raises:
        ValueError: the text is not JSON, or its value is of another type.

    >>> read_json(tuple[int, ...], "[1, 2]", "sizes")
    (1, 2)
    >>> read_json(int, "[1", "size")
    Traceback (most recent call last):
    ValueError: size is not readable JSON (Expecting ',' delimiter: line 1 column 3 (char 2))
    """
    return from_dict(kind, _parsed(text, where), where, more=more)


def read_versioned(
    kind: Any, text: str | bytes, where: str, *, version: int, field: str = "schema_version", more: bool = False
) -> Any:
    """Read a JSON object as `kind`, and check the version of its format before its other fields.

    Args:
        kind: a dataclass; see `from_dict`.
        text: the text.
        where: the name of the object in messages.
        version: the version that `kind` describes.
        field: the field that holds the version.
        more: see `from_dict`.

    Raises:
        ValueError: the text is not JSON, the version is another one, or a field is missing, unknown or of another type.

    >>> read_versioned(dict[str, int], '{"schema_version": 1}', "the plan", version=2)
    Traceback (most recent call last):
    ValueError: the plan has schema version 1, this sae-runtime reads 2
    """
    value = _parsed(text, where)
    written = value.get(field) if isinstance(value, dict) else None
    if written != version:
        raise ValueError(f"{where} has {field.replace('_', ' ')} {shown(written)}, this sae-runtime reads {version}")
    return from_dict(kind, value, where, more=more)


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
        return {key: from_dict(arguments[1], v, f"{where}.{key}", more=more) for key, v in value.items()}
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be {kind.__name__}, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """The text of a value in messages, cut after 80 characters.

    >>> shown("7")
    "'7'"
    """
    try:
        return ascii(value)[:80]
    except ValueError:  # Python refuses to print a whole number of thousands of digits
        return "a number that is far too large"


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable JSON ({error})") from error


def _dataclass(kind: Any, value: Any, where: str, *, more: bool) -> Any:
    hints = typing.get_type_hints(kind)
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
