"""sae-runtime calibrate."""

from pathlib import Path

import click

from sae_runtime.activations.stored import open_activations
from sae_runtime.calibration.calibrate_bundle import calibrate_bundle
from sae_runtime.cli.common import (
    PATH,
    activations_option,
    any_source_option,
    bundle_argument,
    explained,
    force_option,
    json_option,
    quiet_option,
    refuse_same,
    show,
)
from sae_runtime.cli.options import Command


@click.command("calibrate", cls=Command)
@bundle_argument
@activations_option
@click.option("--k", type=click.FLOAT, help="features that a token should have on average [as fitted]")
@click.option("-o", "--output", type=PATH, help="bundle to write [the same one, replaced]")
@any_source_option
@force_option
@quiet_option
@json_option
def command(
    bundle: Path,
    activations: Path,
    k: float | None,
    output: Path | None,
    any_source: bool,
    force: bool,
    quiet: bool,
    json: bool,
) -> None:
    """Fit the threshold of a bundle to a mean L0.

    For a bundle without threshold, or to serve another number of features than it was fitted for. The last quarter of
    the activations measures what the others fitted. Graphs have to be exported again.
    """
    refuse_same(bundle if output is None else output, activations=activations)
    if output is not None:
        refuse_same(output, bundle=bundle)
    made = calibrate_bundle(
        bundle,
        open_activations(activations),
        k=k,
        out=output,
        any_source=any_source,
        force=force,
        progress=not quiet,
    )
    path = bundle if output is None else output
    low, high = float(made.threshold.min()), float(made.threshold.max())
    fvu = explained(made.measured.get("fvu"))
    tokens = f"{made.measured['tokens']:,.0f}"
    lines = [
        ("bundle", path),
        ("threshold", f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"),
        ("measured", f"{fvu}L0 {made.measured['l0']:.2f} on {tokens} tokens kept out of the fit, wanted {made.k:g}"),
        ("next", f"sae-runtime export {path}"),
    ]
    show({"bundle": path, "k": made.k, "threshold": [low, high], "measured": made.measured}, lines, json=json)
