"""What an operation, a call or a filter of a chat template makes, counted before it is made."""

import re
from collections.abc import Iterable
from typing import Any

from sae_runtime.text.budget import Steps, TooMuch, budget

_BITS = 4096  # of a whole number


def charge(value: Any) -> None:
    """Count a value that is printed or was made."""
    spent = budget.get()
    spent.write(spent.size(value)[1])


def check_number(bits: int) -> None:
    """Refuse a whole number of so many bits: dividing two of them takes the square of that."""
    if bits > _BITS:
        raise TooMuch("it computes a number of thousands of digits")


def check_product(operator: str, value: Any, count: int) -> None:
    """Refuse a repetition or a number that is too large."""
    spent = budget.get()
    if isinstance(value, str | bytes):
        spent.write(len(value) * max(count, 0))
    elif isinstance(value, list | tuple):
        spent.spend(len(value) * max(count, 0))
    else:
        bits = value.bit_length()
        check_number(bits * max(count, 1) if operator == "**" else bits + count.bit_length())


def check_numbers(name: str, value: Any, arguments: Iterable[Any]) -> None:
    """Refuse a filter or a test that would read, make or divide numbers of thousands of digits."""
    for one in (value, *arguments):
        check_number(one.bit_length() if isinstance(one, int) else len(one) if isinstance(one, str) else 0)
    if name == "round":
        check_number(max((abs(one) for one in arguments if isinstance(one, int)), default=0))


def check_growth(
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


def check_format(text: str, mark: str, values: Any) -> None:
    """Refuse a format that asks for great widths or repeats its values without bound."""
    nested = re.search(r"%[^%a-zA-Z]*\*" if mark == "%" else r"\{[^{}]*\{", text.replace(mark * 2, ""))
    if nested or re.search(r"\d{5}", text):
        raise TooMuch("it formats a value with a great width")
    spent = budget.get()
    held, characters = spent.size(values)
    spent.write(len(text) + text.count(mark) * (8 * held + characters + 10_000 * bool(re.search(r"\d{3}", text))))
