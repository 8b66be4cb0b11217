"""sae-runtime tune."""

import dataclasses
from pathlib import Path

import click

from sae_runtime import tuned
from sae_runtime.cli.common import bundle_argument, json_option, plural, show, table
from sae_runtime.cli.options import Command
from sae_runtime.tune import ROWS, Tuning, tune


@click.command("tune", cls=Command)
@bundle_argument
@click.option("--threads", type=click.INT, help="threads that the bundle will be served with (default: all cores)")
@json_option
def command(bundle: Path, threads: int | None, json: bool) -> None:
    """Time a bundle's exact graphs, to load the quicker one.

    Runs them in turn on the bundle's sample of activations, and notes the outcome in the user's cache folder, where
    precision "exact" looks for it. It holds for this bundle, processor, onnxruntime and number of threads. Takes some
    seconds, longer for large SAEs; nothing else should keep the machine busy meanwhile.
    """
    found = tune(bundle, threads=threads)
    place = tuned.place()
    result = {"bundle": bundle, **dataclasses.asdict(found), "rows": ROWS, "file": place}
    choice = ("exact", f"{found.graph}, with {plural(found.threads, 'thread')}; noted in {place}")
    show(result, [*_times(found), choice], json=json)


def _times(found: Tuning) -> list[tuple[str, str]]:
    """Milliseconds of a call with so many tokens, as lines for `show`."""
    rows = [["tokens", *(f"{rows:,}" for rows in ROWS), ""]]
    for graph, seconds in found.seconds.items():
        rows.append([graph, *(f"{1e3 * s:.3g} ms" for s in seconds), f"in all {found.totals[graph]:.2f}"])
    return [("times" if number == 0 else "", line) for number, line in enumerate(table(rows))]
