"""sae-runtime convert."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.inspect import fitted_on
from sae_runtime.cli.options import Command


@click.command("convert", cls=Command, example="sae-runtime convert hf://owner/name/layer_12 -o sae")
@click.argument("checkpoint")
@click.option("--format", help="format of the checkpoint [recognised from its files]")
@click.option("--licence", metavar="TEXT", help="licence of the SAE, for its model card [what its files state]")
@common.output("bundle to make")
@common.running("force", "json")
def command(checkpoint: str, format: str | None, licence: str | None, output: Path, run: Run) -> None:
    """Make a bundle of another library's checkpoint.

    CHECKPOINT is one of SAELens, sparsify, dictionary_learning, OpenAI, Gemma Scope, Llama Scope, Qwen Scope, Goodfire,
    circuit-tracer or BatchTopK: its folder, its file, or hf://owner/name[/folder][@revision]. The bundle computes what
    its library computes, on the activations of the model as it is; a checkpoint that a bundle cannot compute is
    refused. What the checkpoint tells of the activations it was fitted on is printed. Run `export` next, or `calibrate`
    first if there is no threshold yet.
    """
    from sae_runtime.bundle.hub import SCHEME
    from sae_runtime.bundle.outputs import refuse_inputs
    from sae_runtime.checkpoints.convert import convert

    if not checkpoint.startswith(SCHEME):
        refuse_inputs(output, {"checkpoint": Path(checkpoint)})
    made = convert(checkpoint, output, format=format, licence=licence, force=run.force)
    for warning in made.warnings:
        common.warn(warning)
    manifest = made.manifest()
    architecture = manifest.architecture
    calibrated = architecture.selection != "threshold" or "threshold" in made.weights
    result = {
        "bundle": output,
        "source_format": made.source_format,
        "architecture": dataclasses.asdict(architecture),
        "calibrated": calibrated,
        "fitted_on": manifest.told("fitted_on", dict),
        "warnings": list(made.warnings),
    }
    sizes = (architecture.d_in, architecture.d_sae, architecture.d_out)
    shape = " -> ".join(str(size) for size in sizes if size is not None)
    then = common.shell_command("export" if calibrated else "calibrate", output)
    lines = [("bundle", output), ("read", f"{made.source_format}, {shape}"), *fitted_on(manifest)]
    run.show(result, [*lines, ("next", then)])
