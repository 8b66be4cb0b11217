"""sae-runtime splice."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.inspect import describe_splice, logits_line
from sae_runtime.cli.options import Command

if TYPE_CHECKING:
    from sae_runtime.exports.splice.comparison import Agreement
    from sae_runtime.exports.splice.splicing import SplicedGraph

LEAST_JACCARD = 0.99  # below it, a float32 host and its model do not mean one place


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
@click.option(
    "--no-logits", is_flag=True, help="do not find the tokens whose logits each feature raises and lowers most"
)
@click.option("--check", metavar="MODEL", help="compare with this transformers model on texts; it needs torch")
@click.option("--text", type=common.PATH, help="texts for --check, one a line [a few sentences]")
@common.output("the graph, .onnx, or a folder, for model.onnx in it [HOST_sae.onnx beside HOST]", required=False)
@common.running("force", "json")
def command(
    host: Path,
    bundles: tuple[str, ...],
    hooks: tuple[str, ...],
    names: tuple[str, ...],
    output: Path | None,
    check: str | None,
    text: Path | None,
    no_logits: bool,
    run: Run,
    **kinds: bool,
) -> None:
    """Put SAEs into a host model's ONNX graph.

    The graph of HOST gains outputs for features and optional inputs for edits; a program that does not know them sees
    the same model. A graph below opset 18 is converted, and its outputs are compared. The graph refers to weights of
    the host at or below its folder where they are; others, and those of the SAEs, are copied into the folder, so that a
    BUNDLE may be fitted again. A folder other than the host's also gets the tokenizer and the configuration beside
    HOST, and bundles that are not in it: it is a deployed model. Quantise, convert and optimise the host first, then
    splice: tools that rewrite graphs break what a splice adds.
    """
    from sae_runtime.bundle.hub import local
    from sae_runtime.exports.splice.splicing import Splice, splice

    names = names or ("sae",)
    if hooks and len(hooks) != len(bundles):
        raise click.UsageError(f"{len(bundles)} --sae and {len(hooks)} --hook; give one hook for each bundle, or none.")
    if len(names) != len(bundles):
        raise click.UsageError(f"{len(bundles)} --sae and {len(names)} --name; give one name for each bundle.")
    if text is not None and check is None:
        raise click.UsageError("--text holds texts for --check; name a MODEL to compare with, or leave it out.")
    if not (kinds["read"] or kinds["edit"] or kinds["replace"]):
        kinds |= {"read": True, "edit": True}
    wanted = [
        Splice(bundle=bundle, hook=hook, name=name, **kinds)
        for bundle, hook, name in zip(bundles, hooks or [None] * len(bundles), names, strict=True)
    ]
    made = splice(host, wanted, output, logits=not no_logits, force=run.force, progress=not run.json)
    for warning in made.warnings:
        common.warn(warning)
    lines: list[tuple[str, object]] = [("graph", made.path)]
    for spliced in made.splices:
        lines += [*describe_splice(spliced), ("logits", logits_line(made.logits[spliced.name]))]
    lines += [("" if i else "weights", f"{how} {file}") for i, (file, how) in enumerate(made.files.items())]
    lines += [("features", made.features)] if made.features else []
    lines += [("beside", ", ".join(_folders_as_one(made.beside)))] if made.beside else []
    results = [] if check is None else compared(made, [local(one.bundle) for one in wanted], check, text)
    for result in results:
        outputs = "" if result.outputs is None else f", outputs within {result.outputs:.1e}"
        lines.append(
            (
                f"{result.name} against {check}",
                f"Jaccard {result.jaccard:.4f}, activations within "
                f"{result.activations:.1e}, features within {result.features:.1e}{outputs}",
            )
        )
    more = {} if check is None else {"check": [dataclasses.asdict(result) for result in results]}
    run.show(dataclasses.asdict(made) | more, lines)
    off = [result for result in results if result.jaccard < LEAST_JACCARD]
    if off and exact(made.path):
        raise ValueError(
            f"{off[0].name} reads other features than {check} at {made.splices[results.index(off[0])].hook}, Jaccard "
            f"{off[0].jaccard:.3f}; hook another place, or name the model that the host was made of"
        )


def _folders_as_one(names: Sequence[str]) -> list[str]:
    """The names of files, and one of each subfolder."""
    return list(dict.fromkeys(name.partition("/")[0] + "/" * ("/" in name) for name in names))


def compared(made: "SplicedGraph", bundles: list[Path], model: str, text: Path | None) -> "list[Agreement]":
    """Compare the places of a spliced graph with a torch model on texts."""
    from sae_runtime.bundle import folder
    from sae_runtime.exports.splice.comparison import agreement
    from sae_runtime.exports.splice.plausibility import TEXTS
    from sae_runtime.train.harvest.witness import read_by_torch

    texts = TEXTS if text is None else [line for line in text.read_text().splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{text} holds no text; write one text a line")
    named = [spliced.hook for spliced in made.splices]
    for hook in named:
        if hook.startswith("tensor:"):
            raise ValueError(f"a torch model has no {hook}; --check needs hooks of modules")
    windows, truth = read_by_torch(model, named, texts)
    return agreement(made.path, list(zip(made.splices, map(folder.read, bundles), strict=True)), windows, truth)


def exact(graph: Path) -> bool:
    """Whether a host computes in float32 alone; other numbers move features across their thresholds."""
    import onnx_ir as ir

    kinds = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4)
    model = ir.load(graph)
    stored = {value.dtype for value in model.graph.initializers.values()}
    return not stored.intersection(kinds) and not any("NBits" in node.op_type for node in model.graph)
