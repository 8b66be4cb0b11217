"""sae-runtime splice."""

import dataclasses
from pathlib import Path

import click

from sae_runtime.cli.common import PATH, force_option, json_option, show
from sae_runtime.cli.options import Command


@click.command("splice", cls=Command)
@click.argument("host", type=PATH)
@click.option("--sae", "bundles", type=PATH, multiple=True, required=True, help="bundle to put in; may be repeated")
@click.option(
    "--hook",
    "hooks",
    multiple=True,
    help="module (encoder.layer.3), block.resid_pre, .resid_mid or .resid_post, TransformerLens name "
    "(blocks.3.hook_resid_post) or tensor:NAME; one for each --sae [the bundle's own]",
)
@click.option("--name", "names", multiple=True, help="what its inputs and outputs begin with; one for each --sae [sae]")
@click.option("--read", is_flag=True, help="give features: NAME_indices, NAME_values")
@click.option("--edit", is_flag=True, help="take edits: NAME_features, NAME_scale, ... [default: read and edit]")
@click.option("--replace", is_flag=True, help="let the reconstruction stand in for the activation, and take its edits")
@click.option("--required", is_flag=True, help="give the inputs for edits no defaults, as onnxruntime-genai needs it")
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="folder, for model.onnx in it, or the graph, .onnx [the host's folder]",
)
@force_option
@json_option
def command(
    host: Path,
    bundles: tuple[Path, ...],
    hooks: tuple[str, ...],
    names: tuple[str, ...],
    read: bool,
    edit: bool,
    replace: bool,
    required: bool,
    output: Path | None,
    force: bool,
    json: bool,
) -> None:
    """Put SAEs into a host model's ONNX graph.

    The graph gains outputs for features and optional inputs for edits; a program that does not know them sees the same
    model. The graph refers to weights at or below its folder where they are; other weights are copied into the folder.
    """
    from sae_runtime.exports.splice.splicing import Splice, splice

    if hooks and len(hooks) != len(bundles):
        raise ValueError(f"{len(bundles)} --sae and {len(hooks)} --hook; give one hook for each bundle, or none")
    if len(names or ("sae",)) != len(bundles):
        raise ValueError(f"{len(bundles)} --sae and {len(names)} --name; give one name for each bundle")
    both = not (read or edit or replace)
    wanted = [
        Splice(
            bundle=bundle,
            hook=hook,
            name=name,
            read=read or both,
            edit=edit or both,
            replace=replace,
            required=required,
        )
        for bundle, hook, name in zip(bundles, hooks or [None] * len(bundles), names or ("sae",), strict=True)
    ]
    made = splice(host, wanted, output, force=force)
    lines: list[tuple[str, object]] = [("graph", made.path)]
    for spliced in made.splices:
        lines.append((spliced.name, f"{spliced.d_sae:,} features of {spliced.hook}, tensor {spliced.tensor}"))
        lines += [("inputs", ", ".join(spliced.inputs))] if spliced.inputs else []
        lines += [("outputs", ", ".join(spliced.outputs))] if spliced.outputs else []
    lines += [("weights" * (i == 0), f"{how} {file}") for i, (file, how) in enumerate(made.files.items())]
    show(dataclasses.asdict(made), lines, json=json)
