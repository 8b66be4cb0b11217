"""sae-runtime train."""

from pathlib import Path
from typing import Any

import click

from sae_runtime import bundle as bundles
from sae_runtime.cli.common import (
    PATH,
    activations_option,
    force_option,
    json_option,
    output_option,
    quiet_option,
    refuse_same,
    show,
)
from sae_runtime.cli.inspect import describe
from sae_runtime.cli.options import Command, build, from_config
from sae_runtime.files import check_free
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.fit import fit


@click.command("train", cls=Command)
@activations_option
@from_config(TrainConfig)
@click.option("--metrics", type=PATH, help="file for a line of JSON every ten steps")
@click.option("--checkpoint", type=PATH, help="folder of the run's state [OUTPUT.checkpoint]")
@click.option("--checkpoint-seconds", type=float, default=300.0, help="how often the state is written")
@click.option("--resume", is_flag=True, help="go on from the checkpoint, or start where there is none")
@output_option("folder of the bundle to make")
@force_option
@quiet_option
@json_option
def command(
    activations: Path,
    metrics: Path | None,
    checkpoint: Path | None,
    checkpoint_seconds: float,
    resume: bool,
    output: Path,
    force: bool,
    quiet: bool,
    json: bool,
    **settings: Any,
) -> None:
    """Fit a sparse autoencoder on activations.

    Writes a bundle: weights, threshold and manifest. Run `export` on it next. A run that was killed goes on with the
    same command and --resume, bit for bit.
    """
    config = build(TrainConfig, settings)
    refuse_same(output, activations=activations)
    if metrics is not None:
        refuse_same(metrics, activations=activations)
    check_free(output, force=force)
    if output.is_dir() and any(output.iterdir()) and not (output / bundles.MANIFEST).is_file():
        raise FileExistsError(f"{output} is a folder but no bundle, so --force does not replace it; name another")
    manifest = fit(
        activations,
        output,
        config,
        metrics=metrics,
        checkpoint=checkpoint or output.with_name(f"{output.name}.checkpoint"),
        checkpoint_seconds=checkpoint_seconds,
        resume=resume,
        force=force,
        progress=not quiet,
    )
    result = {"bundle": output, "measured": manifest.measured}
    lines = [("bundle", output), *describe(manifest), ("next", f"sae-runtime export {output}")]
    show(result, lines, json=json)
