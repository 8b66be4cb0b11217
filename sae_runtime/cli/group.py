"""Groups of commands: help in sections, commands that are imported when they are called, errors of one line."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from sae_runtime.cli.options import config_option
from sae_runtime.core.printable import printable

_NO_READER = 141  # the exit code of a process that SIGPIPE ends, as a shell reports it
_ERRORS = (ValueError, OSError, ImportError, MemoryError, EOFError)  # of inputs and machines; others are bugs
_LOOP = "Symlink loop from "  # begins the RuntimeError of pathlib before Python 3.13


class Failure(click.ClickException):
    """Ends the program with one line on stderr and exit code 1."""

    def show(self, file: object = None) -> None:
        """Print the line."""
        click.echo(printable(self.message), err=True)


class Interrupted(Failure):
    """Ends the program as Ctrl-C does."""

    exit_code = 130  # of a process that SIGINT ends, as a shell reports it

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"interrupted; {error if str(error) else 'nothing was left half written'}")


class Group(click.Group):
    """A group whose commands are the modules of a package.

    Args:
        groups: the title of each section of the help, with the line of each of its commands.
        package: the package; an inner group has one inside `sae_runtime.cli`.
    """

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Mapping[str, str]],
        package: str = "sae_runtime.cli",
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.groups = groups
        self.package = package
        self.params.append(
            config_option("TOML file with a table of settings for each command, such as [train]", _keep_settings)
        )

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the command line; Ctrl-C ends the program with one line here too."""
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt as error:
            raise Interrupted(error) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the help."""
        return [name for lines in self.groups.values() for name in lines]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; its module is imported now."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments call; a mistyped name is refused with the closest one."""
        names = self.list_commands(ctx)
        if args[0] not in names and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(args[0].lower(), names, n=1)
            ctx.fail(f"No such command {args[0]!r}.{f' Did you mean {close[0]!r}?' if close else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, without importing a command."""
        width = max(map(len, self.list_commands(ctx)))
        for title, lines in self.groups.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, line in lines.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error of the input or the machine becomes one line."""
        try:
            with _warnings_as_lines(), _logs_as_text():
                return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of stdout has left, as `head` does. Python flushes stdout once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(_NO_READER) from None
        except (KeyboardInterrupt, click.Abort) as error:
            raise Interrupted(error) from None
        except click.ClickException as error:
            error.message = printable(error.message, keep="\n\t")  # type: ignore[misc]  # final for subclasses
            raise
        except Exception as error:
            # Python 3.11 wraps an interrupt that comes while a class is made.
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise Interrupted(error.__cause__) from None
            if not isinstance(error, _ERRORS) and _LOOP not in str(error):
                raise
            raise Failure(f"error: {_sentence(error)}") from error


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print each warning of our own in the block as one line on stderr, without the place in the code."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category.__module__.startswith("sae_runtime."):
                click.echo(printable(f"warning: {message}"), err=True)
            else:
                others(printable(message, keep="\n\t"), category, *place, **more)

        warnings.showwarning = show
        if logging.lastResort is None:
            yield
            return
        logging.lastResort.setFormatter(_Printable())  # onnx_ir logs names out of the file
        try:
            yield
        finally:
            logging.lastResort.setFormatter(None)


class _Printable(logging.Formatter):
    """What libraries log, as the terminal may show it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable(super().format(record))


class _Record(logging.LogRecord):
    """A line of a library's log, which may hold names out of a file."""

    def getMessage(self) -> str:
        return printable(super().getMessage(), keep="\n\t")


@contextmanager
def _logs_as_text() -> Iterator[None]:
    """Let no log of a library write control characters in the block, whatever handlers the library has."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_Record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


def _keep_settings(ctx: click.Context, option: click.Parameter, path: object) -> None:
    ctx.obj = path or ctx.obj  # for the command, whose context inherits it


def _sentence(error: Exception) -> str:
    """The text of an exception on one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        missing = isinstance(error, FileNotFoundError)
        return f"{error.filename} does not exist" if missing else f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and error.errno is not None:  # of the folder that all paths begin in
        return "the current folder was removed or replaced; change into it again"
    if _LOOP in text:
        return f"{text.partition(_LOOP)[2][1:-1]} is a link that leads to itself; name another path"
    if text == "embedded null byte":
        return "a path holds NUL, which no name of a file can hold; name another path"
    if isinstance(error, MemoryError):
        return f"out of memory{f' ({text})' if text else ''}"
    return text or type(error).__name__
