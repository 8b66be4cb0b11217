"""Jinja as chat templates may use it: no attributes of Python, no endless loop, no memory without bound.

A template is a stranger's program. Jinja's sandbox keeps it from Python's insides; this one also counts what it does.
Every loop, call, filter, operation and output passes through here. A template may call what chat templates call, and
nothing else: what could make a large value of a small one is checked before it happens.
"""

import datetime
import re
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from sae_runtime.text.budget import Steps, budget
from sae_runtime.text.counted_tree import Counted, Generation
from sae_runtime.text.filters import CALL, counted_filters, counted_tests
from sae_runtime.text.growth import charge, check_format, check_growth, check_number, check_product

LARGEST_SOURCE = 1 << 16  # characters of a template; the longest in use have 30,000

_OF_TEXT = set(
    "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper".split()
)
_BACKWARDS = {"rfind", "rindex", "rpartition", "rsplit"}  # which compare the text that they look for at every place
_OF_CONTAINERS = {"copy", "count", "get", "index", "items", "keys", "values", "isdisjoint", "union"}


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
        self.filters = counted_filters(self.filters)
        self.tests = counted_tests(self.tests)

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

    def call_filter(self, name: Any, *arguments: Any, **named: Any) -> Any:
        """A filter that a template names in a value, for `map`: none of the syntax tree's, which take steps back."""
        if not isinstance(name, str) or " " in name:
            raise SecurityError(f"it names the filter {name!r}")
        return super().call_filter(name, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an operation, unless its result is too large."""
        spent = budget.get()
        spent.spend(1)
        if operator == "%" and isinstance(left, str):
            check_format(left, "%", right)
        elif operator in ("*", "**") and isinstance(left, str | list | tuple | bytes | int) and isinstance(right, int):
            check_product(operator, left, right)
        elif operator == "*" and isinstance(right, str | list | tuple | bytes) and isinstance(left, int):
            check_product(operator, right, left)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            spent.write(len(left) + len(right))
        elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
            spent.spend(len(left) + len(right))
        elif isinstance(left, int) and isinstance(right, int):
            check_number(max(left.bit_length(), right.bit_length()))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call what chat templates may call."""
        spent = budget.get()
        spent.spend(CALL + len(arguments) + len(named))
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
        if isinstance(owner, str) and name in _BACKWARDS:
            spent.spend(len(owner) * max((len(one) for one in given if isinstance(one, str)), default=0) // 100)
        if isinstance(called, Format):
            check_format(called.text, "{", given)
        elif name in ("count", "index") and not isinstance(owner, str):
            spent.size(owner)
        elif isinstance(owner, str) and name in ("split", "rsplit", "splitlines"):
            separated = [one for one in given if isinstance(one, str)]
            spent.spend(owner.count(separated[0]) if separated and separated[0] else len(owner) // 4)
        elif name in ("replace", "join", "strip", "lstrip", "rstrip"):
            arguments = check_growth(name, owner, arguments)
        made = super().call(context, called, *arguments, **named)
        charge(made)
        return made


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


@pass_context
def _printed(context: Any, value: Any) -> Any:
    """What `{{ value }}` prints."""
    charge(value)
    return value
