"""sae-runtime train."""

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command, from_config
from sae_runtime.train.config import TrainConfig
from sae_runtime.train.harvest.config import HarvestConfig, for_hooks

if TYPE_CHECKING:
    from sae_runtime.bundle.manifest import Manifest

_STREAMED = (
    "hook",
    "name",
    "text",
    "document",
    "text_field",
    "ids_field",
    "context",
    "dtype",
    "special",
    "skip_first",
    "skip_token",
    "batch_tokens",
)


@click.command("train", cls=Command, example="sae-runtime train --activations acts --k 32 --tokens 10M -o sae")
@click.option("--activations", type=common.PATH, help=common.ACTIVATIONS)
@from_config(TrainConfig, "training", make=dict, repeated=("allocation", "k"))
@click.option("--model", help="instead of --activations: transformers folder or hub name")
@from_config(HarvestConfig, "reading", make=dict, only=_STREAMED, repeated=("hook",), note="with --model")
@click.option("--metrics", type=common.OUTPUT, help="file for a line of JSON every ten steps")
@click.option("--tensorboard", type=common.OUTPUT, help="folder for the same as curves of TensorBoard")
@click.option("--run-state", type=common.OUTPUT, help="folder of the run's state [OUTPUT.run-state]")
@click.option("--run-state-seconds", type=click.FloatRange(min=0), default=300.0, help="time between two run states")
@click.option("--resume", is_flag=True, help="go on from the run state, or start where there is none")
@click.option("--licence", metavar="TEXT", help="licence of the SAEs, for their model cards [not stated]")
@common.output("folder of the bundle to make, or of one bundle each, such as mutual-k16 or h.3-mutual-k16")
@common.running("force", "quiet", "json")
def command(
    activations: Path | None,
    training: dict[str, Any],
    model: str | None,
    reading: dict[str, Any],
    run_state: Path | None,
    output: Path,
    run: Run,
    **options: Any,
) -> None:
    """Fit sparse autoencoders on activations, or on a model as it runs.

    Writes a bundle: weights, threshold and manifest. Run `export` on it next. With several --k or --allocation, every
    combination is fitted in the same pass, and with several --hook at every hook. With --model, --hook and --text
    instead of --activations, the model runs while it is needed and no activations are stored. A run that was killed
    goes on with the same command and --resume, bit for bit.
    """
    from sae_runtime.bundle import folder
    from sae_runtime.bundle.outputs import Output, refuse_inputs

    configs = _configs(training)
    source = _source(activations, model, reading, training["device"])
    inputs = _inputs(source)
    for path in filter(None, (options["metrics"], options["tensorboard"])):
        refuse_inputs(path, inputs)
    many = len(configs) > 1 or isinstance(source, dict)
    foreign = folder.foreign_to_bundles if many else folder.foreign
    Output(path=output, kind="folder", force=run.force, inputs=inputs, foreign=foreign).check()
    from sae_runtime import train  # torch: after the checks

    run_state = run_state or output.with_name(f"{output.name}.run-state")
    options |= {"run_state": run_state, **run.options}
    with common.resumable(run_state, "go on with the same command and --resume"):
        if many:
            made = {output / name: one for name, one in train.fit_many(source, output, configs, **options).items()}
        else:
            assert not isinstance(source, dict)
            made = {output: train.fit(source, output, *configs.values(), **options)}
    if os.environ.get("RANK", "0") != "0":  # under torchrun only the first process prints
        return
    results = [{"bundle": path, **_result(manifest)} for path, manifest in made.items()]
    lines = [line for path, manifest in made.items() for line in _lines(path, manifest)]
    run.show({"bundles": results} if many else results[0], lines)


def _result(manifest: "Manifest") -> dict[str, Any]:
    return {
        "rows": manifest.told("rows", dict),
        "measured": manifest.measured,
        "left_out": {} if manifest.left_out is None else manifest.left_out.rows,
        "measured_with_left_out": manifest.measured_with_left_out,
    }


def _lines(path: Path, manifest: "Manifest") -> list[tuple[str, object]]:
    from sae_runtime.cli.inspect import describe

    return [("bundle", path), *describe(manifest), ("next", common.shell_command("export", path))]


def _configs(training: dict[str, Any]) -> dict[str, TrainConfig]:
    """A config for each allocation and k, by the name that its bundle has among several."""
    pairs = itertools.product(training["allocation"], training["k"])
    made = [TrainConfig(**{**training, "allocation": allocation, "k": k}) for allocation, k in pairs]
    return {f"{config.allocation}-k{config.k:g}": config for config in made}


def _source(
    activations: Path | None, model: str | None, reading: dict[str, Any], device: str | None
) -> Path | HarvestConfig | dict[str, HarvestConfig]:
    """Stored activations, or the settings of the harvest that would store them, by name if there are several hooks."""
    ctx = click.get_current_context()
    given = [name for name in ("model", *reading) if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if activations is not None:
        if given:
            why = "is another source of rows" if given[0] == "model" else "goes with --model"
            flag = given[0].replace("_", "-")
            raise click.UsageError(f"--{flag} {why}; leave out either it or --activations.")
        return activations
    if not (model and reading["hook"] and reading["text"]):
        raise click.UsageError("Give --activations, or --model, --hook and --text.")
    harvests = for_hooks(reading.pop("hook"), model=model, device=device, **reading)
    return harvests if len(harvests) > 1 else next(iter(harvests.values()))


def _inputs(source: Path | HarvestConfig | dict[str, HarvestConfig]) -> dict[str, Path]:
    """The paths that must not be written over, by the names that messages call them."""
    if isinstance(source, Path):
        return {"activations": source}
    if isinstance(source, dict):
        source = next(iter(source.values()))
    texts = {f"text number {number}": path for number, path in enumerate(source.text, start=1)}
    return texts | ({"model": Path(source.model)} if Path(source.model).is_dir() else {})  # else a name of the hub
