"""sae-runtime export."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.activations import open_activations, sample_rows
from sae_runtime.cli.common import PATH, bundle_argument, json_option, show
from sae_runtime.cli.inspect import graph_lines, price_lines
from sae_runtime.cli.options import Command


@click.command("export", cls=Command)
@bundle_argument
@click.option(
    "--precision",
    multiple=True,
    default=("exact", "fast"),
    help="further encoders: exact (int8 finds the matches, float32 decides), fast (int8 alone), float16, gpu (exact, "
    "for CUDA), or none; may be repeated",
)
@click.option(
    "--activations", type=PATH, help="typical activations, to make int8 fine and measure it [the bundle's sample]"
)
@json_option
def command(bundle: Path, precision: tuple[str, ...], activations: Path | None, json: bool) -> None:
    """Put ONNX graphs into a bundle.

    The graphs hold no weights, they refer to those of the bundle, and to what is derived of them. Each is compared with
    numpy before it is left there; graphs of an earlier export are replaced. The encoders of each precision are measured
    on the bundle's sample.
    """
    from sae_runtime.exports.export import export

    if "none" in precision and len(precision) > 1:
        raise click.UsageError("--precision none stands alone")
    x = None
    if activations is not None:
        rows = open_activations(activations)
        x = rows.rows(sample_rows(len(rows), rows.d_in))
    manifest = export(bundle, precisions=() if "none" in precision else precision, activations=x).manifest
    graphs = {name: dataclasses.asdict(record) for name, record in manifest.graphs.items()}
    prices = {name: dataclasses.asdict(price) for name, price in manifest.precisions.items()}
    lines = [("bundle", bundle), *price_lines(manifest.precisions), *graph_lines(manifest.graphs)]
    show({"bundle": bundle, "graphs": graphs, "precisions": prices}, lines, json=json)
