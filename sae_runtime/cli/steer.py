"""sae-runtime steer."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.edits import HINT, edits, found
from sae_runtime.cli.options import Command

if TYPE_CHECKING:
    from sae_runtime.core.edits import Edit


@click.command(
    "steer", cls=Command, example="sae-runtime steer sae --activations acts --set 12=8.0 --ablate 7 -o steered.npy"
)
@common.bundle
@common.activations
@edits
@common.output("file to write, float32: .npy, or .safetensors")
@common.any_source
@common.session
@common.running("force", "quiet", "json")
def command(
    bundle: str,
    activations: Path,
    output: Path,
    edits: list["Edit"],
    any_source: bool,
    session: dict[str, Any],
    run: Run,
) -> None:
    """Edit features of activations.

    FEATURE is a feature's number, or its label in the bundle's labels.jsonl. Every option that names one may be
    repeated; a feature takes one edit. All else in the activations stays, the part that the SAE cannot explain too. An
    x before a number makes it a multiple of the feature's largest activation, which the bundle keeps. An .npy of
    activations may have any shape [..., d_in].
    """
    from sae_runtime.activations.stored import check_source
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.outputs import Output
    from sae_runtime.core.edits import edit_arrays
    from sae_runtime.extraction.steered import any_rank, steer_rows
    from sae_runtime.sae import load

    if not edits:
        raise click.UsageError(HINT)
    if output.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"the output must be an .npy or a .safetensors file, got {output}")
    folder = local(bundle)
    Output(path=output, kind="file", force=run.force, inputs={"bundle": folder, "activations": activations}).check()
    rows, shape = any_rank(activations)
    sae = load(folder, **session)
    plain = sae.resolved(edits)
    edit_arrays([plain], sae.d_sae)  # refuses an edit before the first token is read
    check_source(rows, sae.manifest, any_source=any_source)
    steer_rows(sae, rows, plain, output, shape=shape, **run.options)
    lines = [
        ("activations", output),
        ("shape", " x ".join(map(str, shape))),
        ("edits", f"{common.plural(len(edits), 'feature')} on {common.plural(len(rows), 'token')}"),
        *found(edits, plain),
    ]
    run.show(
        {"activations": output, "shape": shape, "edits": len(edits), "features": [edit.feature for edit in plain]},
        lines,
    )
