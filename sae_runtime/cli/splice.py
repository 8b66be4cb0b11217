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
@click.option("--edit", is_flag=True, help="take edits: NAME_features, NAME_scale, ... [both, where neither is asked]")
@click.option("--replace", is_flag=True, help="let the reconstruction stand in for the activation, and take its edits")
@click.option("--required", is_flag=True, help="inputs for edits have no defaults, as onnxruntime-genai wants it")
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="folder, for model.onnx in it, or the graph, .onnx [the host's folder]",
)
@click.option("--link", is_flag=True, help="hard links instead of copies; onnx refuses to read linked weights")
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
    link: bool,
    force: bool,
    json: bool,
) -> None:
    """Put SAEs into a host model's ONNX graph.

    The graph gains outputs for features and optional inputs for edits; who knows nothing of them sees the same model.
    Weights at or below the graph's folder are referred to, others are copied into it.
    """
    from sae_runtime.exports.splice import Splice, splice

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
    made = splice(host, wanted, output, link=link, force=force)
    lines: list[tuple[str, object]] = [("graph", made.path)]
    for one in made.splices:
        lines.append((one.name, f"{one.d_sae:,} features of {one.hook}, tensor {one.tensor}"))
        lines += [("inputs", ", ".join(one.inputs))] if one.inputs else []
        lines += [("outputs", ", ".join(one.outputs))] if one.outputs else []
    lines += [("weights" * (i == 0), f"{how} {file}") for i, (file, how) in enumerate(made.files.items())]
    show(dataclasses.asdict(made), lines, json=json)
