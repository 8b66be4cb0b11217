"""sae-runtime harvest."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command, from_config
from sae_runtime.train.harvest.config import HarvestConfig, for_hooks

if TYPE_CHECKING:
    from sae_runtime.activations.stored import Activations


@click.command(
    "harvest",
    cls=Command,
    example="sae-runtime harvest gpt2 --hook h.6 --text corpus.txt --tokens 2M -o acts",
    spread=("--text",),
)
@from_config(HarvestConfig, "reading", make=dict, argument="model", repeated=("hook",))
@common.output("folder to make, or to finish: the same harvest goes on where it was interrupted")
@common.running("force", "quiet", "json")
def command(reading: dict[str, Any], output: Path, run: Run) -> None:
    """Keep a model's activations on text.

    MODEL is a transformers folder or a name of the Hugging Face Hub. Writes one row per token to a folder of
    safetensors shards, for `train` and `extract`. With several --hook, one pass reads all of them, and OUTPUT holds a
    folder for each.
    """
    configs = for_hooks(reading.pop("hook"), **reading)
    from sae_runtime.train.harvest import harvest, harvest_many

    many = len(configs) > 1
    with common.resumable(output, "the same command goes on from there"):
        if many:
            made = {output / name: one for name, one in harvest_many(configs, output, **run.options).items()}
        else:
            made = {output: harvest(next(iter(configs.values())), output, **run.options)}
    results = [_result(path, one) for path, one in made.items()]
    lines = [line for each in made.items() for line in _lines(*each)]
    texts = common.skipped(reading["skip_first"], reading["skip_token"])
    lines += [("" if number else "left out", text) for number, text in enumerate(texts)]
    run.show({"harvests": results} if many else results[0], lines)


def _result(path: Path, made: "Activations") -> dict[str, Any]:
    return {
        "activations": path,
        "tokens": len(made),
        "d_in": made.d_in,
        "model": made.model,
        "hook": made.hook,
        "shards": len(made.shards),
    }


def _lines(path: Path, made: "Activations") -> list[tuple[str, object]]:
    tokens, shards = common.plural(len(made), "token"), common.plural(len(made.shards), "shard")
    return [
        ("activations", path),
        ("rows", f"{tokens}, {made.d_in:,} wide, in {shards}"),
        ("source", f"{made.model}, {made.hook}"),
    ]
