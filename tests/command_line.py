"""The command line as a caller meets it: exit code, stdout and stderr."""

import os
import subprocess
import sys
from pathlib import Path

import click
from click.testing import CliRunner, Result

from sae_runtime.cli import main


def commands() -> dict[str, click.Command]:
    """Every command and group by its names, such as "train", "features" and "features show"."""

    def below(group: click.Group, names: str) -> dict[str, click.Command]:
        context, found = click.Context(group), dict[str, click.Command]()
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            found |= {names + name: command}
            found |= below(command, f"{names}{name} ") if isinstance(command, click.Group) else {}
        return found

    return below(main, "")


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    """Run `sae-runtime` in this process; an exception that is a bug is raised, not hidden in the result."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="sae-runtime", env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """What a run that must fail with exit code 1 says: one line on stderr and nothing on stdout."""
    result = run(*arguments, env=env)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1
    return result.stderr.rstrip("\n")


def misused(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """What a run that must be refused as wrong usage, exit code 2, says on stderr after the usage."""
    result = run(*arguments, env=env)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: sae-runtime ")
    return result.stderr.partition("\nError: ")[2].rstrip("\n")


def start(*arguments: str | Path, after: str = "") -> "subprocess.Popen[str]":
    """Start `sae-runtime` in a process of its own, in a bare environment; `after` is Python to run at its end."""
    code = f"import atexit, sys\natexit.register(lambda: exec({after!r}))\nfrom sae_runtime.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("SAE_RUNTIME_")},
    )
