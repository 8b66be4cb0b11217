"""sae-runtime harvest."""

from pathlib import Path
from typing import Any

import click

from sae_runtime.cli.common import force_option, json_option, output_option, plural, quiet_option, show
from sae_runtime.cli.options import Command, build, from_config
from sae_runtime.train import HarvestConfig
from sae_runtime.train.harvest import harvest


@click.command("harvest", cls=Command)
@from_config(HarvestConfig)
@output_option("folder to make, or to finish: the same harvest goes on where it was interrupted")
@force_option
@quiet_option
@json_option
def command(output: Path, force: bool, quiet: bool, json: bool, **settings: Any) -> None:
    """Keep a model's activations on text.

    Writes one row per token to a folder of safetensors shards, for `train` and `extract`.
    """
    config = build(HarvestConfig, settings)
    made = harvest(config, output, force=force, progress=not quiet)
    result = {
        "activations": output,
        "tokens": len(made),
        "d_in": made.d_in,
        "model": made.model,
        "hook": made.hook,
        "shards": len(made.shards),
    }
    lines = [
        ("activations", output),
        ("rows", f"{plural(len(made), 'token')} of width {made.d_in:,} in {plural(len(made.shards), 'shard')}"),
        ("source", f"{made.model}, {made.hook}"),
    ]
    show(result, lines, json=json)
