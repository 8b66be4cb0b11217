"""What each line of docs/reference/install.md installs: megabytes, seconds, and how long the program takes to start.

Each line gets a bare environment, into which pip installs the built wheel with the versions of constraints.txt; the
downloads are in pip's cache if it was run before. torch is installed once, below the lines that need it.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import click
import environments

_LISTS = ("import importlib.metadata as m, json; print(json.dumps(sorted({d.name for d in m.distributions()})))",)


def seconds(command: list[str | Path], rounds: int) -> float:
    """The median of the processor times of a process."""
    taken = []
    for _ in range(rounds):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        taken.append(after.children_user - before.children_user + after.children_system - before.children_system)
    return statistics.median(taken)


@click.command()
@click.option("--line", "chosen", multiple=True, help="Extras of a line; all that are not for GPUs, if none is given.")
@click.option("--rounds", default=7, show_default=True)
def main(chosen: tuple[str, ...], rounds: int) -> None:
    """Print a table."""
    lines = [extras for extras in environments.lines() if "gpu" not in extras]
    print("| extras | packages | MB | to install, s | `import sae_runtime`, s | `sae-runtime --help`, s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        _, wheel = environments.build(home / "build")
        below: Path | None = None
        for number, extras in enumerate(chosen or lines):
            torch = bool({"train", "all"} & set(extras.split(",")))
            start = time.perf_counter()
            if torch and below is None:
                below = home / "torch"
                environments.install(environments.environment(below), "torch")
                print(
                    f"| torch alone | | {environments.megabytes(below):,.0f} | {time.perf_counter() - start:.0f} | | |"
                )
                start = time.perf_counter()
            folder = home / str(number)
            python = environments.environment(folder, below if torch else None)
            environments.install(python, f"{wheel}[{extras}]" if extras else str(wheel))
            took = time.perf_counter() - start
            done = subprocess.run([python, "-c", *_LISTS], check=True, capture_output=True, text=True)
            run = (
                seconds([python, "-c", "import sae_runtime"], rounds),
                seconds([folder / "bin/sae-runtime", "--help"], rounds),
            )
            cells = (len(json.loads(done.stdout)), f"{environments.megabytes(folder):,.0f}", f"{took:.0f}")
            print(f"| `{extras or 'none'}` | {' | '.join(map(str, cells))} | {run[0]:.2f} | {run[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
