"""The filters and tests that chat templates may use, each with a count of what it reads and makes."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2.exceptions import SecurityError

from sae_runtime.text.budget import Steps, TooMuch, budget
from sae_runtime.text.growth import charge, check_format, check_growth, check_numbers

CALL = 8  # steps of a call or a filter

# Filters by what they read of a value: its items one by one, or everything that is in it.
_SHALLOW = {"attr", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr"}
_SHALLOW |= {"reverse", "select", "selectattr", "abs", "float", "int", "round"}
_DEEP = {"capitalize", "dictsort", "e", "escape", "format", "groupby", "indent", "join", "lower", "max", "min"}
_DEEP |= {"replace", "safe", "sort", "string", "striptags", "sum", "title", "trim", "truncate", "unique", "upper"}
_DEEP |= {"urlencode"}
_OF_ITEMS = {"dictsort", "groupby", "join", "list", "max", "min", "sort", "sum", "unique"}  # of a text's characters
_SORTING = {"dictsort", "groupby", "sort"}
_TESTING = set("!= < <= == > >= eq equalto ge greaterthan gt in le lessthan lower lt ne upper".split())
"""Tests that go through all of a value."""


def counted_filters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The filters of chat templates, of all of Jinja's; those with a blank in their name are the syntax tree's."""
    ours = {name: _counted(name, given[name]) for name in _SHALLOW | _DEEP}
    ours["tojson"] = _counted("tojson", _tojson)
    return {**ours, "loop over": _loop_over, "text of": _text_of, "part of": _part_of, "all of": _all_of}


def counted_tests(given: Mapping[str, Any]) -> dict[str, Any]:
    """Jinja's tests, which count what they compare."""
    return {name: _counted_test(name, test) for name, test in given.items()}


def _loop_over(values: Any, cost: int) -> Any:
    iter(values)  # raises TypeError, as a plain loop does, where there are none
    return Steps(values, cost)


def _text_of(values: list[Any]) -> str:
    charge(values)
    return "".join(map(str, values))


def _part_of(value: Any) -> Any:
    budget.get().spend(len(value) // (64 if isinstance(value, str) else 1) if hasattr(value, "__len__") else 1)
    return value


def _all_of(value: Any) -> Any:
    budget.get().size(value)
    return value


def _counted(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts what it reads and makes."""
    passes = 1 if getattr(made, "jinja_pass_arg", None) is not None else 0
    deep = name in _DEEP or name == "tojson"

    @functools.wraps(made)
    def counted(*arguments: Any, **named: Any) -> Any:
        spent = budget.get()
        spent.spend(CALL)
        first, value, rest = arguments[:passes], arguments[passes], arguments[passes + 1 :]
        if isinstance(value, Iterator) and deep:
            value = list(Steps(value, 1))
        elif isinstance(value, list | dict | tuple | range) and name in ("list", "items", "reverse", "first"):
            spent.spend(len(value))
        elif isinstance(value, str) and name in _OF_ITEMS:
            spent.spend(len(value))
        elif isinstance(value, Iterator) and name in ("list", "count", "length", "last"):
            value = Steps(value, 1)
        values, characters = spent.size(value) if deep else (0, 0)
        spent.size([*rest, *named.values()])
        if deep:
            spent.write(characters * (8 if name == "title" else 1))
        if name in _SORTING:
            spent.spend(20 * values)
        if name in ("replace", "join", "trim", "indent"):
            rest = check_growth(name, value, rest, named)
        if name in ("int", "float", "round"):
            check_numbers(name, value, [*rest, *named.values()])
        if name == "format":
            check_format(str(value), "%", [*rest, *named.values()])
        if name == "sum" and any(isinstance(one, list | tuple) for one in value):
            raise SecurityError("it adds up lists")
        result = made(*first, value, *rest, **named)
        if isinstance(result, str):
            spent.write(len(result))
        return result

    # Jinja would await what the wrapped filter's other form gives.
    counted.__dict__.pop("jinja_async_variant", None)
    return counted


def _counted_test(name: str, test: Any) -> Callable[..., bool]:
    @functools.wraps(test)
    def counted(*arguments: Any) -> bool:
        spent = budget.get()
        spent.spend(1)
        if name in _TESTING:
            spent.size(arguments)
        elif name == "divisibleby":
            check_numbers(name, arguments[0], arguments[1:])
        return bool(test(*arguments))

    return counted


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    width = indent if isinstance(indent, int) else len(indent or "")
    if width > 16 or any(len(one) > 16 for one in separators or ()):
        raise TooMuch("it sets the values of JSON too far apart")
    spent = budget.get()
    spent.write(8 * spent.size(value)[0] + (_indented(value) * width if width > 0 else 0))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _indented(value: Any) -> int:
    """The depths of all values in a value, added up."""
    total, depth, level = 0, 0, [value]
    while level:
        total, depth = total + depth * len(level), depth + 1
        inside = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list | tuple)
        ]
        level = [part for values in inside for part in values]
    return total
