"""The options of `extract` that say who makes its parts: this process, actors of Ray, or jobs of a scheduler."""

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sae_runtime.cli.options import WHOLE

if TYPE_CHECKING:
    from sae_runtime.extraction.tasks import Engine

NAMES = ("engine", "address", "workers", "cpus", "plan_only", "share")


class _Share(click.ParamType):  # type: ignore[type-arg]  # generic only in later versions of click
    """`3/32`: the third of 32 shares."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value, re.ASCII)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is no share; write the third of 32 as 3/32.", param, ctx)
        return int(found[1]), int(found[2])


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options."""
    for option in reversed(
        (
            click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="who makes the parts"),
            click.option("--address", help="of a Ray cluster [Ray is started here]"),
            click.option("--workers", type=WHOLE, help="actors of Ray [as the CPUs allow]"),
            click.option("--cpus", type=WHOLE, default=1, help="CPUs and threads of an actor of Ray"),
            click.option("--plan-only", is_flag=True, help="write the plan for --share, and make no part"),
            click.option(
                "--share", type=_Share(), help="make one of N shares of the parts of a plan that is there, and no index"
            ),
        )
    ):
        command = option(command)
    return command


def refuse_mixed(ctx: click.Context) -> None:
    """Refuse options that do not go together."""
    given = {name for name in NAMES if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    for name in ("address", "workers", "cpus"):
        if name in given and ctx.params["engine"] != "ray":
            raise click.UsageError(f"--{name} goes with --engine ray.", ctx)
    if ctx.params["plan_only"] and ctx.params["share"]:
        raise click.UsageError("--plan-only comes first, then --share with the same options; give one of them.", ctx)
    if ctx.params["share"] and ctx.get_parameter_source("force") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--force goes with --plan-only: a share replaces nothing.", ctx)
    if ctx.params["format"] == "delphi" and given:
        raise click.UsageError(f"--{min(given).replace('_', '-')} goes with --format parquet.", ctx)


def engine_of(settings: dict[str, Any]) -> "Engine":
    """The engine that the options name. An actor's graphs get as many threads as it has CPUs, unless others are asked.

    Args:
        settings: the options of the command, with `session`.

    Raises:
        ImportError: Ray is not installed.
    """
    if settings["engine"] == "local":
        from sae_runtime.extraction.tasks import local

        return local
    from sae_runtime.extraction.ray_engine import ray_engine

    logging.disable(logging.WARNING)  # Ray's, about what it does at every run
    settings["session"]["threads"] = settings["session"]["threads"] or settings["cpus"]
    return ray_engine(address=settings["address"], workers=settings["workers"], cpus=settings["cpus"])
