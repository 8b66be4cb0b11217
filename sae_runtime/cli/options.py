"""Where the settings of a command come from: flag, then environment, then a TOML file, then default.

click reads flags and environment. This module makes options of a config dataclass and reads the TOML file.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Collection
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import click

from sae_runtime.bundle.regular import read_bytes

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

_SCALES = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_LARGEST = 10**18


class WholeNumber(click.ParamType):  # type: ignore[type-arg]  # generic only in later versions of click
    """A whole number as people write it: 2048, 500k, 10M or 2e6."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number that a text means."""
        text = str(value).strip()
        scale = _SCALES.get(text[-1:].lower(), 1)
        try:
            number = Decimal(text[:-1] if scale > 1 else text) * scale
            if abs(number) <= _LARGEST and number == int(number):
                return int(number)
        except (ArithmeticError, ValueError):  # no number, infinite or NaN
            pass
        self.fail(f"{text!r} is not a whole number, such as 2048, 500k, 10M or 2e6.", param, ctx)


class NumberOrNone(click.ParamType):  # type: ignore[type-arg]  # generic only in later versions of click
    """A number, or the word none, which is infinity: no limit."""

    name = "float or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that a text means."""
        text = str(value).strip().lower()
        try:
            return math.inf if text == "none" else float(text)
        except ValueError:
            self.fail(f"{str(value)!r} is neither a number nor none.", param, ctx)


WHOLE = WholeNumber()
NUMBER_OR_NONE = NumberOrNone()
_TYPES = {int: WHOLE, float: click.FLOAT, str: click.STRING, bool: click.BOOL, Path: click.Path(path_type=Path)}


class Command(click.Command):
    """A command with an example under its help, and with --config.

    Args:
        example: a call of the command, as a shell takes it.
        group: the name of the group inside the command line that has the command; None where it is no inner one.
        spread: options that take all words up to the next option, as a shell makes several of `data/*.jsonl`. They do
            so where the command's first argument comes first.
    """

    def __init__(
        self, *, example: str, group: str | None = None, spread: Collection[str] = (), **settings: Any
    ) -> None:
        super().__init__(**settings, epilog=f"\b\nExample:\n  {example}")
        self.example = example
        table = f"{group}.{self.name}" if group else self.name
        help = f"TOML file; its table [{table}] holds settings, which flags and environment override"
        self.params.append(config_option(help, _read_settings))
        self._spread = spread

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, after each word of an option that is spread has the option before it."""
        words, option = list[str](), ""
        for number, word in enumerate(args):
            if word.startswith("-") and word != "-":
                option = word if word in self._spread and not args[0].startswith("-") else ""
            elif option and args[number - 1] != option:
                words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)


def config_option(help: str, callback: Callable[[click.Context, click.Parameter, Any], Any]) -> click.Option:
    """The option --config: a file, for a callback of click."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.Option(
        ["--config"], type=file, is_eager=True, expose_value=False, callback=callback, help=help, show_default=False
    )


def gathered(argument: str, make: Callable[..., Any], options: dict[str, Decorator[Any]]) -> Decorator[Any]:
    """Decorator that gives a command options, and hands it one argument that is made of their values.

    Args:
        argument: the name of the argument.
        make: gives its value; takes the values of the options by name.
        options: click's decorator of each option, by the name of its value.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def with_argument(**values: Any) -> Any:
            made = make(**{name: values.pop(name) for name in options})
            return function(**{argument: made}, **values)

        return functools.reduce(lambda command, option: option(command), reversed(options.values()), with_argument)

    return decorate


def from_config(
    config: type[Any],
    name: str = "config",
    *,
    make: Callable[..., Any] | None = None,
    argument: str | None = None,
    repeated: Collection[str] = (),
    only: Collection[str] | None = None,
    note: str = "",
    prefix: str = "",
) -> Decorator[Any]:
    """Decorator that gives a command an option for each field of a dataclass, and hands it the config.

    `metadata["help"]` becomes the help and `metadata["choices"]`, where there are some, the values allowed. With
    `metadata["or_none"]` the word none is allowed, which is infinity. A field without default is required. bool gives
    --name/--no-name, tuple[X, ...] an option that may be repeated.

    Args:
        config: the dataclass.
        name: the argument of the command that is the config.
        make: builds the argument from the values of the fields; None means `config`.
        argument: a field that is the command's positional argument instead of an option.
        repeated: fields whose options may be repeated, so that their values are tuples.
        only: the fields that become options; None means all.
        note: says when the options count; they are never required then.
        prefix: stands in front of the names of the options.
    """
    hints = typing.get_type_hints(config)
    fields = [field for field in dataclasses.fields(config) if only is None or field.name in only]
    options = {
        prefix + field.name: click.argument(field.name)
        if field.name == argument
        else _option(field, hints[field.name], repeated=field.name in repeated, note=note, prefix=prefix)
        for field in fields
    }

    def made(**values: Any) -> Any:
        return (make or config)(**{name.removeprefix(prefix): value for name, value in values.items()})

    return gathered(name, made, options)


def _option(field: "dataclasses.Field[Any]", hint: Any, *, repeated: bool, note: str, prefix: str) -> Decorator[Any]:
    parts = [part for part in typing.get_args(hint) if part not in (types.NoneType, ...)]
    kind = parts[0] if len(parts) == 1 else hint  # of X | None and of tuple[X, ...]
    many = repeated or typing.get_origin(hint) is tuple
    if kind not in _TYPES:
        raise TypeError(f"{field.name} has type {hint}, for which there is no option")
    flag = "--" + (prefix + field.name).replace("_", "-")
    if kind is bool:
        flag += "/--no-" + (prefix + field.name).replace("_", "-")
    help = ": ".join(filter(None, (note, field.metadata.get("help", "")))) + "; may be repeated" * many
    settings: dict[str, Any] = {"help": help, "multiple": many}
    choices = field.metadata.get("choices")
    if kind is not bool:
        single = NUMBER_OR_NONE if field.metadata.get("or_none") else _TYPES[kind]
        settings["type"] = click.Choice(choices, case_sensitive=False) if choices else single
        if single is NUMBER_OR_NONE and field.default == math.inf:
            settings["show_default"] = "none"
    if field.default is not dataclasses.MISSING:
        settings["default"] = (field.default,) if repeated else field.default
    elif field.default_factory is not dataclasses.MISSING:
        settings["default"] = field.default_factory()
    else:
        settings["required"] = not note
    return click.option(flag, prefix + field.name, **settings)


def _read_settings(ctx: click.Context, option: click.Parameter, path: Path | None) -> None:
    """Callback of --config: the file's settings become defaults of the command that is being called."""
    path = path or ctx.obj  # --config of the group, before the command
    if path is None:
        return
    import tomllib

    try:
        tables = tomllib.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{path} is not readable TOML ({error}).", ctx, option) from error
    names, settings = list[str](), tables
    for level in _levels(ctx):
        above, own = level.parent, level.info_name or ""
        known = above.command.list_commands(above) if above and isinstance(above.command, click.Group) else [own]
        for name, table in settings.items():
            if name not in known or not isinstance(table, dict):
                expected = ", ".join(f"[{'.'.join([*names, command])}]" for command in known)
                said = f"{path}: {'.'.join([*names, name])} is not the table of a command, expected {expected}."
                raise click.BadParameter(said, ctx, option)
        names, settings = [*names, own], settings.get(own, {})
    options = {
        param.name: param for param in ctx.command.params if isinstance(param, click.Option) and param is not option
    }
    for key, value in settings.items():
        where = f"{path}: {key} in [{'.'.join(names)}]"
        if key not in options:
            raise click.BadParameter(f"{where} is no setting, expected {', '.join(map(str, options))}.", ctx, option)
        if kind := _mismatch(options[key], value):
            raise click.BadParameter(f"{where} must be {kind}, got {value!r}.", ctx, option)
    ctx.default_map = settings


def _levels(ctx: click.Context) -> list[click.Context]:
    """The contexts of a command and of the groups around it, without the whole command line's."""
    above = _levels(ctx.parent) if ctx.parent is not None and ctx.parent.parent is not None else []
    return [*above, ctx]


def _mismatch(option: click.Option, value: Any) -> str | None:
    """The kind of TOML value that an option needs; None where the value is of it. click checks text and numbers."""
    if option.is_flag:
        return None if isinstance(value, bool) else "true or false"
    if option.multiple:
        return None if isinstance(value, list) and all(map(_is_scalar, value)) else "a list of strings or numbers"
    return None if _is_scalar(value) else "a string or a number"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
