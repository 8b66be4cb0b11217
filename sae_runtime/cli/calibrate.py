"""sae-runtime calibrate."""

from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import NUMBER_OR_NONE, Command


@click.command("calibrate", cls=Command, example="sae-runtime calibrate sae --activations acts --k 32 -o sae-32")
@common.bundle
@common.activations
@click.option("--k", type=click.FLOAT, help="active features that a token has on average [as fitted]")
@click.option(
    "--max-norm",
    type=NUMBER_OR_NONE,
    help="leave out rows whose norm exceeds this multiple of the median norm; none: keep all [the bundle's rule, else "
    "10]",
)
@common.output("bundle to write [the same one, replaced]", required=False)
@common.any_source
@common.running("force", "quiet", "json")
def command(bundle: str, activations: Path, output: Path | None, run: Run, **settings: Any) -> None:
    """Fit the threshold of a bundle to a mean L0.

    For a BUNDLE without a threshold, or to serve another number of features than it was fitted for. The last quarter
    of the activations measures the threshold that the others fit; a document on both sides is cut there, with a gap
    of one window. Export the graphs again afterwards.
    """
    from sae_runtime.activations.stored import open_activations
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.outputs import refuse_inputs
    from sae_runtime.bundle.ready import refuse_ready
    from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
    from sae_runtime.cli.inspect import row_line

    folder = local(bundle)
    target = output or folder
    refuse_ready(target)
    refuse_inputs(target, {"activations": activations, **({"bundle": folder} if output else {})})
    rows = open_activations(activations)
    made = calibrate_bundle(folder, rows, out=output, **run.options, **settings)
    low, high = float(made.threshold.min()), float(made.threshold.max())
    fvu, l0 = common.explained(made.measured.get("fvu")), made.measured["l0"]
    tokens = f"{made.measured['tokens']:,.0f} tokens kept out of the fit"
    left_out, used = made.left_out.rows, made.measured["dead_tokens"]
    lines = [
        ("bundle", target),
        ("threshold", f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"),
        ("rows", row_line(made.rows)),
        ("measured", f"{fvu}L0 {l0:.2f} on {tokens}, wanted {made.k:g}"),
        *common.with_left_out(made.measured_with_left_out),
        *common.left_out(sum(left_out.values()), int(used), made.left_out.norm_multiple),
        ("next", common.shell_command("export", target)),
    ]
    result = {"bundle": target, "k": made.k, "threshold": [low, high], "rows": made.rows, "measured": made.measured}
    run.show(result | {"left_out": left_out, "measured_with_left_out": made.measured_with_left_out}, lines)
