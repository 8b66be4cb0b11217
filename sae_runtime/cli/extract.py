"""sae-runtime extract."""

import dataclasses
from pathlib import Path
from typing import Literal

import click

from sae_runtime.activations.stored import open_activations
from sae_runtime.bundle.graphs import ENCODERS
from sae_runtime.cli.common import (
    activations_option,
    any_source_option,
    bundle_argument,
    force_option,
    json_option,
    output_option,
    plural,
    quiet_option,
    session_options,
    show,
)
from sae_runtime.cli.options import Command
from sae_runtime.extraction.delphi import SEQUENCE
from sae_runtime.extraction.extract import Format, extract
from sae_runtime.extraction.extract import output as made_at
from sae_runtime.extraction.feature_rows import Values
from sae_runtime.sae import load


@click.command("extract", cls=Command)
@bundle_argument
@activations_option
@click.option(
    "--rule",
    type=click.Choice(["served", "batch"]),
    default="served",
    help="select for every token by itself, or the largest activations of all tokens together",
)
@click.option(
    "--format",
    type=click.Choice(["parquet", "delphi"]),
    default="parquet",
    help="a .parquet file, or a folder for EleutherAI's delphi",
)
@click.option(
    "--values",
    type=click.Choice(["float32", "float16"]),
    help="type of the values on disk [float32; float16 for delphi]",
)
@click.option("--sequence", type=click.INT, default=SEQUENCE, help="tokens of a sequence, for delphi")
@click.option(
    "--graph",
    type=click.Choice(ENCODERS),
    help="the graph that encodes; all give the same features [by the SAE's size]",
)
@output_option(".parquet file to write, or for delphi a folder")
@any_source_option
@session_options
@force_option
@quiet_option
@json_option
def command(
    bundle: Path,
    activations: Path,
    rule: Literal["served", "batch"],
    format: Format,
    values: Values | None,
    sequence: int,
    graph: str | None,
    output: Path,
    any_source: bool,
    force: bool,
    quiet: bool,
    json: bool,
    provider: tuple[str, ...],
    threads: int | None,
) -> None:
    """Write the features of activations to a file.

    Parquet has one row per token: doc, pos, token, indices (ascending) and values. delphi reads sequences of one
    length: the tokens after the last whole one are left out.
    """
    made_at(output, format, force=force, inputs={"bundle": bundle, "activations": activations}).check()
    rows = open_activations(activations)
    sae = load(bundle, graph=graph, providers=provider, threads=threads)
    made = extract(
        sae,
        rows,
        output,
        format=format,
        rule=rule,
        values=values,
        sequence=sequence,
        any_source=any_source,
        force=force,
        progress=not quiet,
    )
    l0 = made.matches / made.tokens if made.tokens else 0.0
    lines = [
        ("features", output),
        ("rows", f"{plural(made.tokens, 'token')}, {plural(made.matches, 'match')} ({l0:.4g} a token)"),
        ("size", f"{made.size:,} bytes"),
    ]
    if made.tokens < len(rows):
        lines.append(("left out", f"{plural(len(rows) - made.tokens, 'token')}, which do not fill a sequence"))
    show({"features": output, **dataclasses.asdict(made)}, lines, json=json)
