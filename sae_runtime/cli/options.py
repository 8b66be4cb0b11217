"""Where the settings of a command come from: flag, then environment, then a TOML file, then default.

click reads flags and environment. This module makes options of a config dataclass and reads the TOML file.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, bool: click.BOOL, Path: click.Path(path_type=Path)}


class Command(click.Command):
    """A command with --config: a TOML file whose table of the command's name sets its options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--config"],
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=_read_settings,
                help=f"TOML file; its table [{self.name}] holds settings, which flags and environment override",
            )
        )


def from_config(config: type[Any]) -> Callable[[F], F]:
    """Decorator that gives a command an option for each field of a dataclass.

    `metadata["help"]` becomes the help and `metadata["choices"]`, where there are some, the values allowed. A field
    without default is required. bool gives --name/--no-name, tuple[X, ...] an option that may be repeated.
    """

    def decorate(function: F) -> F:
        hints = typing.get_type_hints(config)
        for field in reversed(dataclasses.fields(config)):
            function = _option(field, hints[field.name])(function)
        return function

    return decorate


def build(config: type[T], settings: Mapping[str, Any]) -> T:
    """The dataclass made of a command's settings, which may hold more."""
    fields = dataclasses.fields(config)  # type: ignore[arg-type]  # T is a dataclass, which typing cannot say
    return config(**{field.name: settings[field.name] for field in fields})


def _option(field: "dataclasses.Field[Any]", hint: Any) -> Callable[[F], F]:
    kind = _without_none(hint)
    repeated = typing.get_origin(kind) is tuple
    if repeated:
        kind = typing.get_args(kind)[0]
    if kind not in _TYPES:
        raise TypeError(f"{field.name} has type {hint}, for which there is no option")
    flag = "--" + field.name.replace("_", "-")
    if kind is bool:
        flag += "/--no-" + field.name.replace("_", "-")
    help = field.metadata.get("help", "")
    settings: dict[str, Any] = {"help": f"{help}; may be repeated" if repeated else help, "multiple": repeated}
    choices = field.metadata.get("choices")
    if kind is not bool:
        settings["type"] = click.Choice(choices, case_sensitive=False) if choices else _TYPES[kind]
    if field.default is not dataclasses.MISSING:
        settings["default"] = field.default
    elif field.default_factory is not dataclasses.MISSING:
        settings["default"] = field.default_factory()
    else:
        settings["required"] = True
    return click.option(flag, field.name, **settings)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def _read_settings(ctx: click.Context, option: click.Parameter, path: Path | None) -> None:
    """Callback of --config: the file's settings become defaults of the command that is being called."""
    if path is None:
        return
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise click.BadParameter(f"{path} is not readable TOML ({error}).", ctx, option) from error
    group = None if ctx.parent is None else ctx.parent.command
    known = group.list_commands(ctx.parent) if isinstance(group, click.Group) and ctx.parent else [ctx.info_name]
    for name, table in tables.items():
        if name not in known or not isinstance(table, dict):
            raise click.BadParameter(
                f"{path}: {name} is not the table of a command, expected {', '.join(f'[{k}]' for k in known)}.",
                ctx,
                option,
            )
    options = {
        param.name: param for param in ctx.command.params if isinstance(param, click.Option) and param is not option
    }
    settings = tables.get(ctx.info_name or "", {})
    for key, value in settings.items():
        where = f"{path}: {key} in [{ctx.info_name}]"
        if key not in options:
            raise click.BadParameter(f"{where} is no setting, expected {', '.join(map(str, options))}.", ctx, option)
        expected = _mismatch(options[key], value)
        if expected:
            raise click.BadParameter(f"{where} must be {expected}, got {value!r}.", ctx, option)
    ctx.default_map = settings


def _mismatch(option: click.Option, value: Any) -> str | None:
    """What a TOML value should have been; None where it is that. click itself checks text and numbers."""
    if option.is_flag:
        return None if isinstance(value, bool) else "true or false"
    if option.multiple:
        return None if isinstance(value, list) and all(map(_is_scalar, value)) else "a list of strings or numbers"
    return None if _is_scalar(value) else "a string or a number"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
