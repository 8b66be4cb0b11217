"""sae-runtime convert."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.bundle.outputs import refuse_inputs
from sae_runtime.cli.common import force_option, json_option, output_option, show
from sae_runtime.cli.options import Command

_OUT = ("sparsify", "dictionary-learning")


@click.command("convert", cls=Command)
@click.argument("checkpoint", metavar="PATH")
@click.option("--format", help="format of the checkpoint [recognised from its files]")
@click.option(
    "--to", type=click.Choice(_OUT), help="the reverse: make a checkpoint of this format from the bundle at PATH"
)
@output_option("bundle to make, or with --to the other library's folder")
@force_option
@json_option
def command(checkpoint: str, format: str | None, to: str | None, output: Path, force: bool, json: bool) -> None:
    """Make a bundle of another library's checkpoint, or the reverse.

    PATH is a checkpoint of SAELens, sparsify, dictionary_learning, OpenAI, Gemma Scope, Llama Scope or BatchTopK: its
    folder, its file, or hf://owner/name[/folder][@revision]. The bundle computes what its library computes; a
    checkpoint that a bundle cannot compute is refused. Run `export` next, or `calibrate` first if there is no
    threshold yet.
    """
    from sae_runtime.bundle.hub import SCHEME, local
    from sae_runtime.checkpoints.convert import convert

    if not checkpoint.startswith(SCHEME):
        refuse_inputs(output, {"checkpoint": Path(checkpoint)})
    if to is not None:
        if format is not None:
            raise click.UsageError("--format names what a checkpoint is, and with --to a bundle is read; leave it out.")
        from sae_runtime.checkpoints import write_dictionary_learning, write_sparsify

        writer = {"sparsify": write_sparsify, "dictionary-learning": write_dictionary_learning}[to]
        writer.write(local(checkpoint), output, force=force)
        show({"checkpoint": output, "format": to}, [("checkpoint", output), ("format", to)], json=json)
        return
    made = convert(checkpoint, output, format=format, force=force)
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    manifest = made.manifest()
    architecture = manifest.architecture
    calibrated = architecture.selection != "threshold" or "threshold" in made.weights
    result = {
        "bundle": output,
        "source_format": made.source_format,
        "architecture": dataclasses.asdict(architecture),
        "calibrated": calibrated,
        "warnings": list(made.warnings),
    }
    shape = f"{architecture.d_in} -> {architecture.d_sae}"
    if architecture.d_out is not None:
        shape += f" -> {architecture.d_out}"
    then = f"sae-runtime export {output}" if calibrated else f"sae-runtime calibrate {output}"
    lines = [("bundle", output), ("read", f"{made.source_format}, {shape}"), ("next", then)]
    show(result, lines, json=json)
