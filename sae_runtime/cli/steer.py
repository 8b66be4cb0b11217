"""sae-runtime steer."""

import math
from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command, Decorator


def _edit(ctx: click.Context, option: click.Parameter, value: str, multiples: bool) -> tuple[int, float, bool]:
    """The parts of FEATURE=NUMBER, and whether the number is a multiple of the largest activation: FEATURE=xNUMBER."""
    feature, _, text = value.partition("=")
    text = text.strip()
    times = multiples and text[:1] in ("x", "X")
    try:
        edit = int(feature), float(text[times:]), times
    except ValueError:
        examples = "12=8.0 or 12=x2" if multiples else "12=8.0"
        raise click.BadParameter(f"{value!r} is not FEATURE=NUMBER, such as {examples}.", ctx, option) from None
    if not math.isfinite(edit[1]):
        raise click.BadParameter(f"{value!r} needs a finite number.", ctx, option)
    return edit


def _edit_option(verb: str, help: str, *, multiples: bool = True) -> Decorator[Any]:
    return click.option(
        f"--{verb}",
        multiple=True,
        metavar="FEATURE=NUMBER",
        callback=lambda ctx, option, values: [_edit(ctx, option, value, multiples) for value in values],
        help=help,
    )


@click.command(
    "steer", cls=Command, example="sae-runtime steer sae --activations acts --set 12=8.0 --ablate 7 -o steered.npy"
)
@common.bundle
@common.activations
@_edit_option("set", "the feature has this value (clamp); 12=x2: twice its largest activation")
@_edit_option("add", "its value is raised by this, or by 12=xNUMBER")
@_edit_option("scale", "it is stronger or weaker by this factor, where it is active", multiples=False)
@click.option("--ablate", multiple=True, type=WHOLE, metavar="FEATURE", help="it is off")
@_edit_option("cap", "its value is at most this, or 12=xNUMBER")
@click.option("--only-active", is_flag=True, help="edit a feature only on the tokens where it is active")
@common.output("file to write, float32: .npy, or .safetensors")
@common.any_source
@common.session
@common.running("force", "quiet", "json")
def command(
    bundle: str,
    activations: Path,
    output: Path,
    only_active: bool,
    any_source: bool,
    session: dict[str, Any],
    run: Run,
    **edits: Any,
) -> None:
    """Edit features of activations.

    Every option that names a feature may be repeated; a feature takes one edit. All else in the activations stays, the
    part that the SAE cannot explain too. An x before a number makes it a multiple of the feature's largest activation,
    which the bundle keeps. An .npy of activations may have any shape [..., d_in].
    """
    from sae_runtime.activations.stored import check_source
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.outputs import Output
    from sae_runtime.core.edits import Edit, edit_arrays
    from sae_runtime.extraction.steered import any_rank, steer_rows
    from sae_runtime.sae import load

    chosen = [Edit.ablate(feature, only_active=only_active) for feature in edits.pop("ablate")]
    for verb, given in edits.items():
        for feature, number, times in given:
            amount = {"times": number} if times else {}
            chosen.append(getattr(Edit, verb)(feature, *([] if times else [number]), **amount, only_active=only_active))
    if not chosen:
        raise click.UsageError("Give an edit: --set, --add, --scale, --ablate or --cap.")
    if output.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"the output must be an .npy or a .safetensors file, got {output}")
    folder = local(bundle)
    Output(path=output, kind="file", force=run.force, inputs={"bundle": folder, "activations": activations}).check()
    rows, shape = any_rank(activations)
    sae = load(folder, **session)
    largest = None if sae.stats is None else sae.stats.largest
    edit_arrays([chosen], sae.d_sae, largest)  # refuses an edit before the first token is read
    check_source(rows, sae.manifest, any_source=any_source)
    steer_rows(sae, rows, chosen, output, shape=shape, **run.options)
    lines = [
        ("activations", output),
        ("shape", " x ".join(map(str, shape))),
        ("edits", f"{common.plural(len(chosen), 'feature')} on {common.plural(len(rows), 'token')}"),
    ]
    run.show({"activations": output, "shape": shape, "edits": len(chosen)}, lines)
