"""sae-runtime steer."""

import math
from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command, Decorator


def _pair(ctx: click.Context, option: click.Parameter, value: str) -> tuple[int, float]:
    feature, _, number = value.partition("=")
    try:
        pair = int(feature), float(number)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not FEATURE=NUMBER, such as 12=8.0.", ctx, option) from None
    if not math.isfinite(pair[1]):
        raise click.BadParameter(f"{value!r} needs a finite number.", ctx, option)
    return pair


def _edit_option(verb: str, help: str) -> Decorator[Any]:
    return click.option(
        f"--{verb}",
        multiple=True,
        metavar="FEATURE=NUMBER",
        callback=lambda ctx, option, values: [_pair(ctx, option, value) for value in values],
        help=help,
    )


@click.command(
    "steer", cls=Command, example="sae-runtime steer sae --activations acts --set 12=8.0 --ablate 7 -o steered.npy"
)
@common.bundle
@common.activations
@_edit_option("set", "the feature has this value on every token")
@_edit_option("add", "its value is raised by this on every token")
@_edit_option("scale", "it is stronger or weaker by this factor, where it is active")
@click.option("--ablate", multiple=True, type=WHOLE, metavar="FEATURE", help="it is off")
@_edit_option("cap", "its value is at most this")
@common.output("file to write, float32: .npy, or .safetensors")
@common.any_source
@common.session
@common.running("force", "quiet", "json")
def command(
    bundle: str,
    activations: Path,
    output: Path,
    any_source: bool,
    session: dict[str, Any],
    run: Run,
    **edits: Any,
) -> None:
    """Edit features of activations.

    Every option that names a feature may be repeated; a feature takes one edit. All else in the activations stays, the
    part that the SAE cannot explain too. An .npy of activations may have any shape [..., d_in].
    """
    from sae_runtime.activations.stored import check_source
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.outputs import Output
    from sae_runtime.core.edits import Edit, as_inputs
    from sae_runtime.extraction.steered import any_rank, steer_rows
    from sae_runtime.sae import load

    chosen = [Edit.ablate(feature) for feature in edits.pop("ablate")]
    chosen += [getattr(Edit, verb)(*pair) for verb, pairs in edits.items() for pair in pairs]
    if not chosen:
        raise click.UsageError("Give an edit: --set, --add, --scale, --ablate or --cap.")
    if output.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"the output must be an .npy or a .safetensors file, got {output}")
    folder = local(bundle)
    Output(path=output, kind="file", force=run.force, inputs={"bundle": folder, "activations": activations}).check()
    rows, shape = any_rank(activations)
    sae = load(folder, **session)
    as_inputs([chosen], sae.d_sae)  # refuses an edit before the first token is read
    check_source(rows, sae.manifest, any_source=any_source)
    steer_rows(sae, rows, chosen, output, shape=shape, **run.options)
    lines = [
        ("activations", output),
        ("shape", " x ".join(map(str, shape))),
        ("edits", f"{common.plural(len(chosen), 'feature')} on {common.plural(len(rows), 'token')}"),
    ]
    run.show({"activations": output, "shape": shape, "edits": len(chosen)}, lines)
