"""sae-runtime splice."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.inspect import describe_splice
from sae_runtime.cli.options import Command


@click.command("splice", cls=Command, example="sae-runtime splice model/host.onnx --sae model/sae")
@click.argument("host", type=common.PATH)
@click.option("--sae", "bundles", multiple=True, required=True, help="bundle to put in; may be repeated")
@click.option(
    "--hook",
    "hooks",
    multiple=True,
    help="[input:]module (encoder.layer.3), block.resid_pre, .resid_mid or .resid_post, TransformerLens name "
    "(blocks.3.hook_resid_post) or tensor:NAME; one for each --sae [the bundle's own]",
)
@click.option("--name", "names", multiple=True, help="what its inputs and outputs begin with; one for each --sae [sae]")
@click.option("--read", is_flag=True, help="give features: NAME_indices, NAME_values")
@click.option("--edit", is_flag=True, help="take edits: NAME_features, NAME_scale, ... [default: read and edit]")
@click.option("--replace", is_flag=True, help="put the reconstruction in place of the activation, and take its edits")
@click.option("--required", is_flag=True, help="give the inputs no defaults, as onnxruntime-genai needs it")
@common.output("the graph, .onnx, or a folder, for model.onnx in it [HOST_sae.onnx beside HOST]", required=False)
@common.running("force", "json")
def command(
    host: Path,
    bundles: tuple[str, ...],
    hooks: tuple[str, ...],
    names: tuple[str, ...],
    output: Path | None,
    run: Run,
    **kinds: bool,
) -> None:
    """Put SAEs into a host model's ONNX graph.

    The graph of HOST gains outputs for features and optional inputs for edits; a program that does not know them sees
    the same model. A graph below opset 18 is converted, and its outputs are compared. The graph refers to weights at
    or below its folder where they are; other weights are copied into the folder. Quantise, convert and optimise the
    host first, then splice: tools that rewrite graphs break what a splice adds.
    """
    from sae_runtime.bundle.hub import local
    from sae_runtime.exports.splice.splicing import Splice, splice

    names = names or ("sae",)
    if hooks and len(hooks) != len(bundles):
        raise click.UsageError(f"{len(bundles)} --sae and {len(hooks)} --hook; give one hook for each bundle, or none.")
    if len(names) != len(bundles):
        raise click.UsageError(f"{len(bundles)} --sae and {len(names)} --name; give one name for each bundle.")
    if not (kinds["read"] or kinds["edit"] or kinds["replace"]):
        kinds |= {"read": True, "edit": True}
    wanted = [
        Splice(bundle=local(bundle), hook=hook, name=name, **kinds)
        for bundle, hook, name in zip(bundles, hooks or [None] * len(bundles), names, strict=True)
    ]
    made = splice(host, wanted, output, force=run.force)
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    lines: list[tuple[str, object]] = [("graph", made.path)]
    for spliced in made.splices:
        lines += describe_splice(spliced)
    lines += [("" if i else "weights", f"{how} {file}") for i, (file, how) in enumerate(made.files.items())]
    run.show(dataclasses.asdict(made), lines)
