"""docs/reference/cli.md: every command of sae-runtime, by what click knows of it."""

import inspect
import re
from collections.abc import Iterator

import click

from references.prose import cell, escaped, fenced, wrapped
from sae_runtime.cli import GROUPS, main

_HEAD = """# Command line

`sae-runtime COMMAND --help` shows what this page has of a command. `eval "$(sae-runtime completion bash)"` lets TAB
complete commands, options and names of features.

An option is taken from the command line; else from its variable of the environment; else from the table of the command
in the TOML file of `--config`, such as `[train]` or `[features.show]`; else it has its default. In variables and TOML a
`-` within a name is a `_`: `--d-sae` of `train` is `SAE_RUNTIME_TRAIN_D_SAE`, and `d_sae` in `[train]`. An option that
may be repeated takes several words in its variable, paths with `:` between them, and a list in TOML.

| exit code | meaning |
|---|---|
| 0 | it is done |
| 1 | it cannot be done; stderr has one line that begins with `error:` and says what to do |
| 2 | the command line is wrong; stderr has the usage and what is wrong |
| 130 | Ctrl-C; nothing is left half written |
| 141 | who read its output has left, as `head` does |

Results go to stdout, progress and warnings to stderr. What a command writes, it writes beside its place and moves
there when it is whole. A command that would write over something says so and asks for `--force`.
"""


def page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    for title, lines in GROUPS.items():
        parts.append(f"## {title}\n\n{_table(lines)}")
        for name in lines:
            parts += _command(name, main, _context(main, "sae-runtime", None), "###")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _table(lines: dict[str, str]) -> str:
    rows = [f"| [`{name}`](#{name}) | {cell(line)} |" for name, line in lines.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def _command(name: str, group: click.Group, above: click.Context, level: str) -> Iterator[str]:
    command = group.get_command(above, name)
    assert command is not None
    context = _context(command, name, above)
    path = context.command_path.removeprefix("sae-runtime ")
    yield f"{level} {path}"
    yield from _help(command.help or "")
    yield fenced(" ".join([context.command_path, *command.collect_usage_pieces(context)]))
    if example := getattr(command, "example", None):
        yield "Example:"
        yield fenced(example)
    options = [param for param in command.get_params(context) if isinstance(param, click.Option) and not param.hidden]
    rows = [_row(option, context) for option in options if "--help" not in option.opts]
    yield "\n".join(["| option | what it is | default |", "|---|---|---|", *rows])
    if prefix := context.auto_envvar_prefix:
        named = [option for option in options if option.expose_value and _plain(option) != option.name]
        others = "".join(f"; `{option.opts[-1]}` has `{prefix}_{(option.name or '').upper()}`" for option in named)
        yield wrapped(f"Variables begin with `{prefix}_`{others}.")
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _command(inner, command, context, level + "#")


def _help(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            yield fenced(paragraph.removeprefix("\b\n"))
        elif paragraph.strip():
            yield wrapped(escaped(" ".join(paragraph.split())))


def _row(option: click.Option, context: click.Context) -> str:
    """A row of the table of options."""
    record = option.get_help_record(context)
    assert record is not None
    extra = option.get_help_extra(context)
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    metavar = "" if choices or option.is_flag else " " + option.make_metavar(context)
    names = ", ".join(f"`{name}{metavar if name == option.opts[-1] else ''}`" for name in option.opts)
    names += "".join(f", `{name}`" for name in option.secondary_opts)
    help = re.sub(r"\s*\[([^\[\]]+)\]$", "", option.help or "") if _default_in(option.help) else option.help or ""
    if choices:
        help += f"{'; ' * bool(help)}one of {', '.join(f'`{choice}`' for choice in choices)}"
    if "range" in extra:
        help += f" ({extra['range']})"
    default = "required" if option.required else extra.get("default") or _default_in(option.help)
    return f"| {names} | {cell(help)} | {cell(default)} |"


def _plain(option: click.Option) -> str:
    """The name that its variable and its key in TOML have, where nothing else is said."""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _default_in(help: str | None) -> str:
    """A default that depends on something stands in brackets at the end of the help.

    >>> _default_in("threads of an operator [all cores]")
    'all cores'
    """
    found = re.search(r"\[([^\[\]]+)\]$", help or "")
    return found[1] if found else ""
