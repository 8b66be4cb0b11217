"""Processor time of `--help` and of a completion of every command, in seconds: median and most of some rounds."""

import os
import statistics
import subprocess
import sys

import click

from sae_runtime.cli import COMMANDS

PROGRAM = [sys.executable, "-c", "from sae_runtime.cli import main; main(prog_name='sae-runtime')"]


def seconds(arguments: list[str], **env: str) -> float:
    """Processor time of a process, its children included."""
    before = os.times()
    done = subprocess.run([*PROGRAM, *arguments], env={**os.environ, **env}, capture_output=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    return after.children_user - before.children_user + after.children_system - before.children_system


@click.command()
@click.option("--rounds", default=9, show_default=True)
def main(rounds: int) -> None:
    """Print a row for each command."""
    print(f"{'command':14}{'--help':>16}{'completion':>16}")
    for name in COMMANDS:
        words = {"COMP_WORDS": f"sae-runtime {name} --", "COMP_CWORD": "2", "_SAE_RUNTIME_COMPLETE": "bash_complete"}
        rows = [(seconds([name, "--help"]), seconds([], **words)) for _ in range(rounds)]
        cells = (f"{statistics.median(column):.2f} ({max(column):.2f})" for column in zip(*rows, strict=True))
        print(f"{name:14}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
