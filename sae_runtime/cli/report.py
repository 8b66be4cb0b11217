"""sae-runtime report."""

from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command


@click.command("report", cls=Command, example="sae-runtime report evaluation.json --metrics run.jsonl -o report.html")
@click.argument("evaluation", type=common.PATH, nargs=-1, required=True)
@click.option(
    "--metrics",
    type=common.PATH,
    multiple=True,
    help="file of train --metrics, one for each evaluation in their order, or none; of a run of several, the same",
)
@common.output("HTML file to write")
@common.running("force", "json")
def command(evaluation: tuple[Path, ...], metrics: tuple[Path, ...], output: Path, run: Run) -> None:
    """Show what bundles explain on one HTML page.

    Reads each EVALUATION, a file that `evaluate -o` wrote, and sets them beside each other, with pictures. The page
    needs no other file.
    """
    from sae_runtime.bundle.evaluation_file import read_evaluation
    from sae_runtime.bundle.extras import require
    from sae_runtime.bundle.files import new_file
    from sae_runtime.bundle.outputs import Output

    require("report")
    from sae_runtime.browser.report import Subject, read_metrics, report  # needs matplotlib

    if metrics and len(metrics) != len(evaluation):
        many = common.plural(len(evaluation), "evaluation")
        raise click.UsageError(f"{len(metrics)} --metrics for {many}; give one each.")
    if len({path.resolve() for path in evaluation}) < len(evaluation):
        raise ValueError("an evaluation is given twice; name every file once")
    for path in (*evaluation, *metrics):
        Output(path=output, kind="file", force=run.force, inputs={"input": path}).check()
    read = [read_evaluation(path) for path in evaluation]
    names = [one.name for one in read]
    if len(set(names)) < len(names):  # bundles of one name, or one bundle on several activations
        names = [str(path) for path in evaluation]
    curves: list[list[dict[str, Any]] | None] = [None for _ in read]
    if metrics:
        curves = [read_metrics(file, one.name) for file, one in zip(metrics, read, strict=True)]
    subjects = [
        Subject(name=name, evaluation=one, metrics=curve) for name, one, curve in zip(names, read, curves, strict=True)
    ]
    with new_file(output, force=run.force) as partial:
        partial.write_text(report(subjects), encoding="utf-8")
    size = output.stat().st_size
    lines = [("report", output), ("about", ", ".join(names)), ("size", f"{size:,} bytes")]
    run.show({"report": output, "bundles": names, "size": size}, lines)
