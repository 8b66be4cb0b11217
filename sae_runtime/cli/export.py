"""sae-runtime export."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.activations.stored import open_activations, sample_rows
from sae_runtime.bundle.graphs import BY_DEFAULT, ON_REQUEST
from sae_runtime.cli.common import PATH, bundle_argument, json_option, show
from sae_runtime.cli.inspect import graph_lines
from sae_runtime.cli.options import Command


@click.command("export", cls=Command)
@bundle_argument
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice([*ON_REQUEST, "none"]),
    default=BY_DEFAULT,
    help="encoders besides encode.onnx: exact (int8 finds the matches, float32 decides), gpu (the same for CUDA), or "
    "none; may be repeated",
)
@click.option("--activations", type=PATH, help="typical activations, to make int8 fine [the bundle's sample]")
@json_option
def command(bundle: Path, graphs: tuple[str, ...], activations: Path | None, json: bool) -> None:
    """Put ONNX graphs into a bundle.

    The graphs hold no weights: they refer to those of the bundle and to what is derived from them. Each graph is
    compared with numpy before it takes the place of one from an earlier export.
    """
    from sae_runtime.exports.export import export

    if "none" in graphs and len(graphs) > 1:
        raise click.UsageError("--graph none stands alone; leave the others out")
    x = None
    if activations is not None:
        rows = open_activations(activations)
        x = rows.rows(sample_rows(len(rows), rows.d_in))
    manifest = export(bundle, graphs=() if "none" in graphs else graphs, activations=x).manifest
    records = {name: dataclasses.asdict(record) for name, record in manifest.graphs.items()}
    show({"bundle": bundle, "graphs": records}, [("bundle", bundle), *graph_lines(manifest.graphs)], json=json)
