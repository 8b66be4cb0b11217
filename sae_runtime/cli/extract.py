"""sae-runtime extract."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from sae_runtime.bundle.graphs import ENCODERS
from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command


@click.command("extract", cls=Command, example="sae-runtime extract sae --activations acts -o features.parquet")
@common.bundle
@common.activations
@click.option(
    "--rule",
    type=click.Choice(["served", "batch"]),
    default="served",
    help="select for every token by itself, or the largest activations of all tokens together",
)
@click.option(
    "--format",
    type=click.Choice(["parquet", "delphi"]),
    help="a .parquet file, or a folder for EleutherAI's delphi [parquet, for an output that ends in .parquet]",
)
@click.option(
    "--values",
    type=click.Choice(["float32", "float16"]),
    help="type of the values on disk [float32; float16 for delphi]",
)
@click.option("--sequence", type=WHOLE, default=256, help="tokens of a sequence, for delphi")
@click.option(
    "--graph",
    type=click.Choice(ENCODERS),
    help="the graph that encodes; all give the same features [by the SAE's size]",
)
@common.output(".parquet file to write, or for delphi a folder")
@common.any_source
@common.session
@common.running("force", "quiet", "json")
def command(
    bundle: str,
    activations: Path,
    format: Any,
    graph: str | None,
    output: Path,
    session: dict[str, Any],
    run: Run,
    **settings: Any,
) -> None:
    """Write the features of activations to a file.

    Parquet has one row per token: doc, pos, token, indices (ascending) and values. delphi reads sequences of one
    length: the tokens after the last whole one are left out.
    """
    from sae_runtime.activations import stored
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.plausible import warn_of_other_rows
    from sae_runtime.extraction import extract as extraction
    from sae_runtime.sae import load

    folder, format = local(bundle), format or "parquet"
    inputs = {"bundle": folder, "activations": activations}
    extraction.output(output, format, force=run.force, inputs=inputs).check()
    rows = stored.open_activations(activations)
    sae = load(folder, graph=graph, **session)
    made = extraction.extract(sae, rows, output, format=format, **run.options, **settings)
    l0 = made.matches / made.tokens if made.tokens else 0.0
    warn_of_other_rows(sae.manifest, rows.path, tokens=made.tokens, l0=l0)
    tokens, matches = common.plural(made.tokens, "token"), common.plural(made.matches, "match")
    lines = [
        ("features", output),
        ("rows", f"{tokens}, {matches} ({l0:.4g} a token)"),
        ("size", f"{made.size:,} bytes"),
    ]
    if made.tokens < len(rows):
        left = common.plural(len(rows) - made.tokens, "token")
        lines.append(("left out", f"{left}, which do not fill a sequence"))
    run.show({"features": output, **dataclasses.asdict(made)}, lines)
