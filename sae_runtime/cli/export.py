"""sae-runtime export."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.cli.common import bundle_argument, json_option, show
from sae_runtime.cli.inspect import graph_lines
from sae_runtime.cli.options import Command


@click.command("export", cls=Command)
@bundle_argument
@json_option
def command(bundle: Path, json: bool) -> None:
    """Put ONNX graphs into a bundle.

    The graphs hold no weights, they refer to those of the bundle. Each is compared with numpy before it is left there;
    graphs of an earlier export are replaced.
    """
    from sae_runtime.exports.export import export

    graphs = export(bundle).manifest.graphs
    result = {"bundle": bundle, "graphs": {name: dataclasses.asdict(record) for name, record in graphs.items()}}
    show(result, [("bundle", bundle), *graph_lines(graphs)], json=json)
