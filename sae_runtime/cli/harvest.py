"""sae-runtime harvest."""

from pathlib import Path

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command, from_config
from sae_runtime.train.harvest.config import HarvestConfig


@click.command(
    "harvest", cls=Command, example="sae-runtime harvest gpt2 --hook h.6 --text corpus.txt --tokens 2M -o acts"
)
@from_config(HarvestConfig, argument="model")
@common.output("folder to make, or to finish: the same harvest goes on where it was interrupted")
@common.running("force", "quiet", "json")
def command(config: HarvestConfig, output: Path, run: Run) -> None:
    """Keep a model's activations on text.

    MODEL is a transformers folder or a name of the Hugging Face Hub. Writes one row per token to a folder of
    safetensors shards, for `train` and `extract`.
    """
    from sae_runtime.train.harvest import harvest

    with common.resumable(output, "the same command goes on from there"):
        made = harvest(config, output, **run.options)
    result = {
        "activations": output,
        "tokens": len(made),
        "d_in": made.d_in,
        "model": made.model,
        "hook": made.hook,
        "shards": len(made.shards),
    }
    tokens, shards = common.plural(len(made), "token"), common.plural(len(made.shards), "shard")
    lines = [
        ("activations", output),
        ("rows", f"{tokens}, {made.d_in:,} wide, in {shards}"),
        ("source", f"{made.model}, {made.hook}"),
    ]
    run.show(result, lines)
