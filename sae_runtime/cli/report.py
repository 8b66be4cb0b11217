"""sae-runtime report."""

from pathlib import Path
from typing import Any

import click

from sae_runtime.cli.common import (
    PATH,
    activations_option,
    any_source_option,
    force_option,
    json_option,
    output_option,
    plural,
    quiet_option,
    refuse_same,
    show,
)
from sae_runtime.cli.evaluate import evaluated, evaluation_options
from sae_runtime.cli.options import Command
from sae_runtime.extras import require
from sae_runtime.files import check_free, new_file


@click.command("report", cls=Command)
@click.argument("bundle", type=PATH, nargs=-1, required=True)
@activations_option
@evaluation_options
@click.option(
    "--metrics",
    type=PATH,
    multiple=True,
    help="file of train --metrics, one for each bundle in their order, or none; of a run of several, the same for each",
)
@output_option("HTML file to write")
@any_source_option
@force_option
@quiet_option
@json_option
def command(
    bundle: tuple[Path, ...],
    activations: Path,
    metrics: tuple[Path, ...],
    output: Path,
    any_source: bool,
    force: bool,
    quiet: bool,
    json: bool,
    **settings: Any,
) -> None:
    """Show what bundles explain on one HTML page.

    Evaluates every bundle as `evaluate` does and sets them beside each other, with pictures. The page needs no other
    file.
    """
    require("report")
    from sae_runtime.report import Subject, read_metrics, report  # matplotlib: only once it is known to be there

    if metrics and len(metrics) != len(bundle):
        raise click.UsageError(f"{len(metrics)} --metrics for {plural(len(bundle), 'bundle')}; give one for each.")
    names = _names(bundle)
    for path in (*bundle, activations, *metrics):
        refuse_same(output, input=path)
    if output.is_dir():
        raise FileExistsError(f"{output} is a folder; name a file in it")
    check_free(output, force=force)
    curves: list[list[dict[str, Any]] | None] = [None for _ in bundle]
    if metrics:
        curves = [read_metrics(file, path.resolve().name) for file, path in zip(metrics, bundle, strict=True)]
    subjects = []
    for name, path, curve in zip(names, bundle, curves, strict=True):
        found = evaluated(path, activations, settings, any_source=any_source, progress=not quiet)
        subjects.append(
            Subject(name=name, manifest=found.manifest, evaluation=found.evaluation, host=found.host, metrics=curve)
        )
    with new_file(output, force=force) as partial:
        partial.write_text(report(subjects), encoding="utf-8")
    size = output.stat().st_size
    lines = [("report", output), ("about", ", ".join(names)), ("size", f"{size:,} bytes")]
    show({"report": output, "bundles": names, "size": size}, lines, json=json)


def _names(bundles: tuple[Path, ...]) -> list[str]:
    """What the bundles are called on the page: by their folders, or by their paths where folders share a name."""
    if len({path.resolve() for path in bundles}) < len(bundles):
        raise ValueError("a bundle is given twice; name every bundle once")
    names = [path.resolve().name for path in bundles]
    return names if len(set(names)) == len(names) else [str(path) for path in bundles]
