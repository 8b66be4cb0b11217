"""sae-runtime train."""

import dataclasses
import itertools
import os
import types
import typing
from pathlib import Path
from typing import Any

import click

from sae_runtime.bundle import folder as bundles
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.outputs import Output, refuse_inputs
from sae_runtime.cli.common import PATH, force_option, json_option, output_option, quiet_option, show
from sae_runtime.cli.inspect import describe
from sae_runtime.cli.options import Command, build, from_config
from sae_runtime.train import HarvestConfig, TrainConfig, fit, fit_many

_REPEATED = ("allocation", "k")
_STREAMED = ("model", "hook", "name", "text", "document", "context", "dtype", "special", "batch_tokens")
_HELP = {"dtype": "type that the rows are rounded to, as harvest stores them"}


def _options() -> type[Any]:
    """TrainConfig with lists of what may be repeated, and what of HarvestConfig says which rows a text gives."""
    fields: list[tuple[str, Any, Any]] = []
    hints = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind, default = hints[field.name], field.default
        if field.name in _REPEATED:
            kind, default = types.GenericAlias(tuple, (kind, ...)), (default,)
        fields.append((field.name, kind, dataclasses.field(default=default, metadata=field.metadata)))
    hints = typing.get_type_hints(HarvestConfig)
    for field in dataclasses.fields(HarvestConfig):
        if field.name not in _STREAMED:
            continue
        kind, default = hints[field.name], field.default
        if default is dataclasses.MISSING:  # required there, and here only where no activations are given
            kind, default = (kind, ()) if typing.get_origin(kind) is tuple else (kind | None, None)
        when = "instead of --activations" if field.name == "model" else "with --model"
        help = f"{when}: {_HELP.get(field.name, field.metadata['help'])}"
        fields.append((field.name, kind, dataclasses.field(default=default, metadata={**field.metadata, "help": help})))
    return dataclasses.make_dataclass("Options", fields, kw_only=True)


@click.command("train", cls=Command)
@click.option("--activations", type=PATH, help="folder of harvest, .npy or .safetensors of shape [n, d_in]")
@from_config(_options())
@click.option("--metrics", type=PATH, help="file for a line of JSON every ten steps")
@click.option("--tensorboard", type=PATH, help="folder for the same as curves of TensorBoard")
@click.option("--run-state", type=PATH, help="folder of the run's state [OUTPUT.run-state]")
@click.option("--run-state-seconds", type=click.FloatRange(min=0), default=300.0, help="how often the state is written")
@click.option("--resume", is_flag=True, help="go on from the run state, or start where there is none")
@output_option("folder of the bundle to make, or of one bundle each, such as mutual-k16")
@force_option
@quiet_option
@json_option
def command(
    activations: Path | None,
    metrics: Path | None,
    tensorboard: Path | None,
    run_state: Path | None,
    run_state_seconds: float,
    resume: bool,
    output: Path,
    force: bool,
    quiet: bool,
    json: bool,
    **settings: Any,
) -> None:
    """Fit sparse autoencoders on activations, or on a model at work.

    Writes a bundle: weights, threshold and manifest. Run `export` on it next. With several --k or --allocation, every
    combination is fitted in the same pass. With --model, --hook and --text instead of --activations, the model runs
    while it is needed and no activations are stored. A run that was killed goes on with the same command and
    --resume, bit for bit.
    """
    configs = _configs(settings)
    source = _source(activations, settings)
    inputs = {"activations": source} if isinstance(source, Path) else _inputs(source)
    for path in filter(None, (metrics, tensorboard)):
        refuse_inputs(path, inputs)
    many = len(configs) > 1
    foreign = _not_of_bundles if many else _not_a_bundle
    Output(path=output, force=force, inputs=inputs, foreign=foreign).check()
    run: dict[str, Any] = {
        "metrics": metrics,
        "tensorboard": tensorboard,
        "run_state": run_state or output.with_name(f"{output.name}.run-state"),
        "run_state_seconds": run_state_seconds,
        "resume": resume,
        "force": force,
        "progress": not quiet,
    }
    if many:
        made = {output / name: manifest for name, manifest in fit_many(source, output, configs, **run).items()}
    else:
        (config,) = configs.values()
        made = {output: fit(source, output, config, **run)}
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks
        return
    results = [{"bundle": path, "measured": manifest.measured} for path, manifest in made.items()]
    lines = [line for path, manifest in made.items() for line in _lines(path, manifest)]
    show({"bundles": results} if many else results[0], lines, json=json)


def _lines(path: Path, manifest: Manifest) -> list[tuple[str, object]]:
    return [("bundle", path), *describe(manifest), ("next", f"sae-runtime export {path}")]


def _configs(settings: dict[str, Any]) -> dict[str, TrainConfig]:
    """A config for each allocation and k, by the name of its bundle among others."""
    every = (
        build(TrainConfig, {**settings, "allocation": allocation, "k": k})
        for allocation, k in itertools.product(settings["allocation"], settings["k"])
    )
    return {f"{config.allocation}-k{config.k:g}": config for config in every}


def _source(activations: Path | None, settings: dict[str, Any]) -> Path | HarvestConfig:
    """Stored activations, or what harvest would be told to store."""
    ctx = click.get_current_context()
    given = [name for name in _STREAMED if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if activations is not None:
        if given:
            flag = given[0].replace("_", "-")
            why = "is another source of rows" if flag == "model" else "goes with --model"
            raise click.UsageError(f"--{flag} {why}; leave out either it or --activations.")
        return activations
    if not (settings["model"] and settings["hook"] and settings["text"]):
        raise click.UsageError("Give --activations, or --model, --hook and --text.")
    return HarvestConfig(**{name: settings[name] for name in _STREAMED}, device=settings["device"])


def _inputs(config: HarvestConfig) -> dict[str, Path]:
    """What must not be written over; --text may be given often, and names of the hub are no paths."""
    texts = {f"text number {number}": path for number, path in enumerate(config.text, start=1)}
    return texts | ({"model": Path(config.model)} if Path(config.model).is_dir() else {})


def _not_of_bundles(folder: Path) -> str | None:
    """The name of an entry of a folder that is not a bundle, or None."""
    return next((path.name for path in sorted(folder.iterdir()) if not (path / bundles.MANIFEST).is_file()), None)


def _not_a_bundle(folder: Path) -> str | None:
    """The name of an entry of a folder that is not a bundle, or None if it is one or is empty."""
    return None if (folder / bundles.MANIFEST).is_file() else next((path.name for path in folder.iterdir()), None)
