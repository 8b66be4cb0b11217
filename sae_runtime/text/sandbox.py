"""Jinja as chat templates may use it: no attributes of Python, no endless loop, no memory without bound.

A template is a stranger's program. Jinja's sandbox keeps it from Python's insides; this one also counts what it does.
Every loop, call, filter, operation and output passes through here. A template may call what chat templates call, and
nothing else: what could make a large value of a small one is checked before it happens.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from sae_runtime.text.budget import Steps, TooMuch, budget

LARGEST_SOURCE = 1 << 16  # characters of a template; the longest in use have 30,000
_BITS = 4096  # of a whole number
_CALL = 8  # steps of a call or a filter

# Filters by what they read of a value: its items one by one, or everything that is in it.
_SHALLOW = {"attr", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject", "rejectattr"}
_SHALLOW |= {"reverse", "select", "selectattr", "abs", "float", "int", "round"}
_DEEP = {"capitalize", "dictsort", "e", "escape", "format", "groupby", "indent", "join", "lower", "max", "min"}
_DEEP |= {"replace", "safe", "sort", "string", "striptags", "sum", "title", "trim", "truncate", "unique", "upper"}
_DEEP |= {"urlencode", "wordcount"}
_SORTING = {"dictsort", "groupby", "sort"}
_COMPARING = {
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "eq",
    "equalto",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "le",
    "lessthan",
    "lt",
}
_COMPARING |= {"ne"}

_OF_TEXT = set(
    "capitalize casefold count encode endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper".split()
) - {"encode"}
_OF_CONTAINERS = {"copy", "count", "get", "index", "items", "keys", "values", "isdisjoint", "union"}


class Counted(NodeTransformer):
    """Puts a counting filter around every part of a template that loops, joins, compares or builds a value."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: D102, N802 # Jinja's name
        cost = 1 + sum(1 for part in node.body for _ in part.find_all(nodes.Node))
        self.generic_visit(node)
        node.iter = _counting(node.iter, "loop over", nodes.Const(cost))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: D102, N802
        self.generic_visit(node)
        return _counting(nodes.List(node.nodes, lineno=node.lineno), "text of")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: D102, N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _counting(node.node, "part of")
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: D102, N802
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _counting(operand.expr, "all of")
        node.expr = _counting(node.expr, "all of")
        return node

    def _built(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _counting(node, "all of")

    visit_List = visit_Dict = visit_Tuple = _built


def _counting(node: Any, name: str, *arguments: Any) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template; renders by it need a `budget`."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # Jinja would compute constants before the budget counts
            finalize=_printed,
            extensions=[Generation, loopcontrols],
        )
        self._cost = 1  # steps of a macro's call
        self.globals = {
            **{"range": self.globals["range"], "dict": TemplateDict(), "namespace": TemplateNamespace},
            **{"raise_exception": _raise_exception, "strftime_now": _strftime_now},
        }
        ours = {name: _counted(name, self.filters[name]) for name in _SHALLOW | _DEEP}
        self.filters = {
            **{**ours, "tojson": _counted("tojson", _tojson)},
            **{"loop over": _loop_over, "text of": _text_of, "part of": _part_of, "all of": _all_of},
        }
        self.tests = {name: _counted_test(name, test) for name, test in self.tests.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        macros = [part for kind in (nodes.Macro, nodes.CallBlock, nodes.Block) for part in tree.find_all(kind)]
        self._cost = 2 + 2 * max((sum(1 for _ in part.find_all(nodes.Node)) for part in macros), default=0)
        counted: nodes.Template = Counted().visit(tree)
        return counted

    def concat(self, pieces: Iterable[str]) -> str:  # Jinja has "".join here
        """Join the pieces of an output."""
        kept, write = [], budget.get().write
        for piece in pieces:
            write(len(piece))
            kept.append(piece)
        return "".join(kept)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Refuse an attribute at once; Jinja would print nothing."""
        raise SecurityError(f"it reaches for the attribute {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Any:
        """The `format` of a text, in Jinja's sandbox, which also counts."""
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else Format(wrapped, value.__self__)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an operation, unless its result is too large."""
        spent = budget.get()
        spent.spend(1)
        if operator == "%" and isinstance(left, str):
            _check_format(left, "%", right)
        elif operator in ("*", "**") and isinstance(left, str | list | tuple | bytes | int) and isinstance(right, int):
            _check_product(operator, left, right)
        elif operator == "*" and isinstance(right, str | list | tuple | bytes) and isinstance(left, int):
            _check_product(operator, right, left)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            spent.write(len(left) + len(right))
        elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
            spent.spend(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what chat templates may call."""
        spent = budget.get()
        spent.spend(_CALL + len(arguments) + len(named))
        if isinstance(called, Macro | BlockReference):
            spent.spend(self._cost)
            return super().call(context, called, *arguments, **named)
        if isinstance(called, LoopContext):
            arguments = tuple(Steps(one, self._cost) for one in arguments[:1])
            return super().call(context, called, *arguments)
        if not _may_be_called(called):
            raise SecurityError(f"it calls {_name(called)}")
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        given = list(arguments) + list(named.values())
        spent.size(given)
        if isinstance(owner, str):
            spent.size(owner)
        if isinstance(called, Format):
            _check_format(called.text, "{", given)
        elif name in ("count", "index") and not isinstance(owner, str):
            spent.size(owner)
        elif name in ("replace", "join", "strip", "lstrip", "rstrip"):
            arguments = _check_growth(name, owner, arguments)
        made = super().call(context, called, *arguments, **named)
        _charge(made)
        return made


class Generation(Extension):
    """`{% generation %}`, by which a template marks the assistant's answers; it changes no text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:  # noqa: D102
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Any) -> Any:
        return caller()


class TemplateDict:
    """`dict(...)` in a template."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:  # noqa: D102
        return dict(*arguments, **named)


class TemplateNamespace(Namespace):
    """`namespace(...)` in a template."""

    def held(self) -> dict[str, Any]:
        """Its attributes."""
        return Namespace.__getattribute__(self, "_Namespace__attrs")  # type: ignore[no-any-return]

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name) if name == "held" else Namespace.__getattribute__(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it sets the attribute {name!r}")
        super().__setitem__(name, value)


class Format:
    """The method `format` of a text."""

    __name__ = "format"

    def __init__(self, wrapped: Callable[..., str], text: str) -> None:
        self._wrapped, self.text = wrapped, text

    def __call__(self, *arguments: Any, **named: Any) -> str:  # noqa: D102
        return self._wrapped(*arguments, **named)


def _may_be_called(called: Any) -> bool:
    if isinstance(called, Format | TemplateDict) or called in (TemplateNamespace, _raise_exception, _strftime_now):
        return True
    if called is jinja2.sandbox.safe_range or isinstance(called, jinja2.Undefined):
        return True
    owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    if isinstance(owner, str):
        return name in _OF_TEXT
    if isinstance(owner, list | tuple | dict):
        return name in _OF_CONTAINERS
    return isinstance(owner, LoopContext | Generation)


def _name(called: Any) -> str:
    name, owner = getattr(called, "__name__", type(called).__name__), getattr(called, "__self__", None)
    return f"{name!r}" if owner is None else f"{name!r} of a {type(owner).__name__}"


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if re.search(r"\d{3}", form):
        raise SecurityError("it asks for a date of a great width")
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if (indent if isinstance(indent, int) else len(indent or "")) > 16 or any(
        len(one) > 16 for one in separators or ()
    ):
        raise TooMuch("it sets the values of JSON too far apart")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_context
def _printed(context: Any, value: Any) -> Any:
    """What `{{ value }}` prints."""
    _charge(value)
    return value


def _charge(value: Any) -> None:
    """Count a value that is printed or was made."""
    spent = budget.get()
    spent.write(spent.size(value)[1])


def _loop_over(values: Any, cost: int) -> Any:
    iter(values)  # raises TypeError, as a plain loop does, where there are none
    return Steps(values, cost)


def _text_of(values: list[Any]) -> str:
    _charge(values)
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
        spent.spend(_CALL)
        first, value, rest = arguments[:passes], arguments[passes], arguments[passes + 1 :]
        if isinstance(value, Iterator) and deep:
            value = list(Steps(value, 1))
        elif isinstance(value, list | dict | tuple | range) and name in ("list", "items", "reverse", "first"):
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
            rest = _check_growth(name, value, rest, named)
        if name == "format":
            _check_format(str(value), "%", [*rest, *named.values()])
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
        if name in _COMPARING:
            spent.size(arguments)
        return bool(test(*arguments))

    return counted


def _check_product(operator: str, value: Any, count: int) -> None:
    """Refuse a repetition or a number that is too large."""
    spent = budget.get()
    if isinstance(value, str | bytes):
        spent.write(len(value) * max(count, 0))
    elif isinstance(value, list | tuple):
        spent.spend(len(value) * max(count, 0))
    elif (value.bit_length() * max(count, 1) if operator == "**" else value.bit_length() + count.bit_length()) > _BITS:
        raise TooMuch("it computes a number of thousands of digits")


def _check_growth(
    name: str, value: Any, arguments: tuple[Any, ...], named: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """Count what replacing, joining, stripping or indenting makes, before it does; gives the arguments."""
    spent = budget.get()
    given = [*arguments, *(named or {}).values()]
    if name == "replace":
        pair = {**dict(zip(("old", "new"), arguments, strict=False)), **(named or {})}
        spent.write(str(value).count(str(pair.get("old", "a"))) * len(str(pair.get("new", ""))))
    elif name == "join" and isinstance(value, str):  # the method: the text joins the arguments
        joined = list(Steps(arguments[0], 1)) if arguments else []
        spent.write(len(value) * len(joined) + spent.size(joined)[1])
        return (joined, *arguments[1:])
    elif name == "join":
        spent.write(len(value) * sum(len(one) for one in given if isinstance(one, str)))
    elif name == "indent":
        width = max((len(one) if isinstance(one, str) else abs(int(one)) for one in given), default=4)
        spent.write((len(str(value).splitlines()) + 1) * width)
    elif any(isinstance(one, str) and len(one) > 100 for one in given):
        raise TooMuch("it strips by too many characters")
    return arguments


def _check_format(text: str, mark: str, values: Any) -> None:
    """Refuse a format that asks for great widths or repeats its values without bound."""
    nested = re.search(r"%[^%a-zA-Z]*\*" if mark == "%" else r"\{[^{}]*\{", text.replace(mark * 2, ""))
    if nested or re.search(r"\d{5}", text):
        raise TooMuch("it formats a value with a great width")
    spent = budget.get()
    spent.write(len(text) + text.count(mark) * (spent.size(values)[1] + 10_000 * bool(re.search(r"\d{3}", text))))
