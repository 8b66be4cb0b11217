"""What a change costs: two checkouts of this project by processor time, alternating, and each beside itself.

Each of the four workers (A, A once more, B, B once more) is a process of its own, with the interpreter that is given
for its checkout. In a round each worker runs each task for a moment. A ratio is the median of B over A; the band is the
spread of the medians of A over A and B over B, a worker against its double. What lies more than 3 % outside is slower,
or faster.

    python benchmarks/before_after.py ../before . --python-a ../before/.venv/bin/python --python-b .venv/bin/python
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

MARGIN = 0.03
WORKER = Path(__file__).with_name("before_after_worker.py")
PATH = click.Path(exists=True, file_okay=False, path_type=Path)
SECONDS = 0.2  # of processor time for each task in a round; a longer call is a turn of its own


class Worker:
    """A process that runs the tasks of one checkout, one at a time."""

    def __init__(self, python: Path, checkout: Path, threads: int, script: Sequence[str | Path]) -> None:
        """Start it; it is ready when the first task is asked for."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        # An absolute path, but no resolved one: a link is what makes an interpreter that of its environment.
        command = [os.path.abspath(python), *map(str, script)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=checkout, env=environment
        )

    def ask(self, question: str) -> Any:
        """Give the answer to one line; the worker's own error stands on stderr if it ends instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"a worker ended at {question!r}; its error stands above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def workers(
    python_a: Path, a: Path, python_b: Path, b: Path, threads: int, script: Sequence[str | Path] = (WORKER,)
) -> Iterator[dict[str, Worker]]:
    """Two of each checkout, which run a script with its arguments."""
    made = {
        name: Worker(python, checkout.absolute(), threads, script)
        for name, python, checkout in (("A", python_a, a), ("A'", python_a, a), ("B", python_b, b), ("B'", python_b, b))
    }
    try:
        yield made
    finally:
        for worker in made.values():
            worker.close()


def seconds_by_task(workers: dict[str, Worker], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Processor seconds of a call, of every round, by task and worker; the order of the workers turns each round."""
    tasks: list[str] = workers["A"].ask("tasks")
    for name, worker in workers.items():
        if name != "A" and worker.ask("tasks") != tasks:
            raise click.ClickException("the checkouts do not know the same tasks; use one worker file for both")
    seconds: dict[str, dict[str, list[float]]] = {task: {name: [] for name in workers} for task in tasks}
    names = list(workers)
    for number in range(rounds):
        for task in tasks:
            for name in names[number % 4 :] + names[: number % 4]:
                seconds[task][name].append(float(workers[name].ask(f"{SECONDS} {task}")))
        print(f"round {number + 1} of {rounds} at {time.strftime('%H:%M:%S')}", file=sys.stderr, flush=True)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(x / y for x, y in zip(above, below, strict=True))


def print_row(task: str, seconds: dict[str, list[float]]) -> str:
    """Print one row of the table, and give its verdict."""
    ratio = median_ratio(
        [sum(pair) for pair in zip(seconds["B"], seconds["B'"], strict=True)],
        [sum(pair) for pair in zip(seconds["A"], seconds["A'"], strict=True)],
    )
    itself = [median_ratio(seconds["A'"], seconds["A"]), median_ratio(seconds["B'"], seconds["B"])]
    # Which of two equal workers is the first is chance: each ratio stands for its inverse too.
    widest = max(max(r, 1 / r) for r in itself)
    low, high = 1 / widest, widest
    verdict = "slower" if ratio > high + MARGIN else "faster" if ratio < low - MARGIN else "equal"
    a, b = (1e3 * statistics.median(seconds[name]) for name in "AB")
    print(f"| {task} | {a:.3f} | {b:.3f} | {ratio:.3f} | {low:.3f} to {high:.3f} | {verdict} |", flush=True)
    return verdict


def print_table(seconds: dict[str, dict[str, list[float]]]) -> list[str]:
    """Print all rows, and give their verdicts."""
    print(f"| task | A, ms | B, ms | B / A | itself / itself | verdict at {MARGIN:.0%} |\n" + "|---" * 6 + "|")
    return [print_row(task, times) for task, times in seconds.items()]


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--python-a", default=sys.executable, type=Path, help="interpreter of A [this one]")
@click.option("--python-b", default=sys.executable, type=Path, help="interpreter of B [this one]")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
def main(a: Path, b: Path, python_a: Path, python_b: Path, rounds: int, threads: int) -> None:
    """Compare checkout B with checkout A; exit 1 where a task is slower."""
    with workers(python_a, a, python_b, b, threads) as made:
        seconds = seconds_by_task(made, rounds)
    raise SystemExit("slower" in print_table(seconds))


if __name__ == "__main__":
    main()
