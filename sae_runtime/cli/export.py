"""sae-runtime export."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.bundle.graphs import BY_DEFAULT, ON_REQUEST
from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.inspect import graph_lines
from sae_runtime.cli.options import Command


@click.command("export", cls=Command, example="sae-runtime export sae --activations acts")
@common.bundle
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice([*ON_REQUEST, "none"]),
    default=BY_DEFAULT,
    help="encoders besides encode.onnx: exact (int8 finds the matches, float32 decides), gpu (the same for CUDA), or "
    "none; may be repeated",
)
@click.option("--activations", type=common.PATH, help="typical activations, to make int8 fine [the bundle's sample]")
@common.running("json")
def command(bundle: str, graphs: tuple[str, ...], activations: Path | None, run: Run) -> None:
    """Put ONNX graphs into a bundle.

    The graphs hold no weights: they refer to those of the BUNDLE and to what is derived from them. Each graph is
    compared with numpy before it replaces one of an earlier export.
    """
    if "none" in graphs and len(graphs) > 1:
        raise click.UsageError("--graph none excludes all others; leave them out.")
    from sae_runtime.activations.stored import open_activations, sample_rows
    from sae_runtime.bundle.hub import local
    from sae_runtime.exports.export import export

    x = None
    if activations is not None:
        rows = open_activations(activations)
        x = rows.rows(sample_rows(len(rows), rows.d_in))
    manifest = export(local(bundle), graphs=() if "none" in graphs else graphs, activations=x).manifest
    records = {name: dataclasses.asdict(record) for name, record in manifest.graphs.items()}
    run.show({"bundle": bundle, "graphs": records}, [("bundle", bundle), *graph_lines(manifest.graphs)])
