"""sae-runtime evaluate, and how a bundle is evaluated by any command."""

import json as json_format
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from sae_runtime.activations import INDEX, open_activations
from sae_runtime.cli.common import (
    PATH,
    activations_option,
    any_source_option,
    bundle_argument,
    force_option,
    json_option,
    output_option,
    quiet_option,
    refuse_same,
    show,
)
from sae_runtime.cli.options import Command, build, from_config
from sae_runtime.files import check_free, new_file
from sae_runtime.manifest import Manifest
from sae_runtime.train import EvaluateConfig, HarvestConfig, evaluate
from sae_runtime.train.device import usable_device
from sae_runtime.train.evaluation import Evaluation, RuleEvaluation
from sae_runtime.train.fitted import open_fitted
from sae_runtime.train.host_loss import HostLoss, host_loss

F = TypeVar("F", bound=Callable[..., Any])
_WINDOWS = {"split": (str, "text"), "context": (int, "a whole number"), "special": (bool, "true or false")}
_LONG = ("matches", "l0_tokens", "histogram")  # a number for each feature, count or bin: for the file only


def evaluation_options(function: F) -> F:
    """Decorator that adds the options which `evaluated` reads."""
    for option in (
        click.option("--batch-tokens", type=click.INT, default=2048, help="tokens per forward pass of the model"),
        click.option("--text-tokens", type=click.INT, default=8192, help="tokens of the text to replace at most"),
        click.option("--hook", help="module of the model whose output is replaced [the bundle's]"),
        click.option("--text", type=PATH, multiple=True, help="text for --model, as harvest reads it; may be repeated"),
        click.option("--model", help="transformers folder or hub name: also measure what this model loses"),
    ):
        function = option(function)
    return from_config(EvaluateConfig)(function)


@dataclass(frozen=True)
class Evaluated:
    """What is known of a bundle."""

    manifest: Manifest
    evaluation: Evaluation
    host: HostLoss | None


def evaluated(
    bundle: Path, activations: Path, settings: Mapping[str, Any], *, any_source: bool, progress: bool
) -> Evaluated:
    """Evaluate a bundle as the options say.

    Raises:
        UsageError: a model without text, or text without a model.
        ValueError: the bundle, the activations, the model or the text cannot be used.
    """
    if (settings["model"] is None) != (not settings["text"]):
        raise click.UsageError("--model and --text go together: the model reads the text.")
    config = build(EvaluateConfig, settings)
    source = open_activations(activations)
    fitted = open_fitted(bundle, usable_device(config.device))
    host_config = None if settings["model"] is None else _host_config(bundle, fitted.manifest, activations, settings)
    evaluation = evaluate(fitted, source, config, any_source=any_source, progress=progress)
    host = None if host_config is None else host_loss(fitted, host_config, progress=progress)
    return Evaluated(fitted.manifest, evaluation, host)


def _host_config(bundle: Path, manifest: Manifest, activations: Path, settings: Mapping[str, Any]) -> HarvestConfig:
    hook = settings["hook"] or manifest.hook
    if hook is None:
        raise ValueError(f"{bundle} does not know its hook; name it with --hook")
    return HarvestConfig(
        model=settings["model"],
        hook=hook,
        text=settings["text"],
        tokens=settings["text_tokens"],
        batch_tokens=settings["batch_tokens"],
        device=settings["device"],
        **_as_harvested(activations),
    )


def _as_harvested(activations: Path) -> dict[str, Any]:
    """Which tokens were kept and in what windows, where the activations are a folder that says so."""
    index = activations / INDEX
    harvested = json_format.loads(index.read_text()) if index.is_file() else {}
    same = {name: harvested[name] for name in _WINDOWS if name in harvested}
    for name, value in same.items():
        kind, expected = _WINDOWS[name]
        if type(value) is not kind:
            raise ValueError(f"{index} has {name} {value!r}, expected {expected}; harvest again")
    return same


@click.command("evaluate", cls=Command)
@bundle_argument
@activations_option
@evaluation_options
@output_option("JSON file of all numbers, those of each feature too", default=None)
@any_source_option
@force_option
@quiet_option
@json_option
def command(
    bundle: Path,
    activations: Path,
    output: Path | None,
    any_source: bool,
    force: bool,
    quiet: bool,
    json: bool,
    **settings: Any,
) -> None:
    """Measure what a bundle explains, and what a model loses.

    By the served rule and by the batch rule: variance explained, active features, their use, and the decoder. With
    --model and --text also what the model loses when its activations are replaced by reconstructions.
    """
    if output is not None:
        refuse_same(output, bundle=bundle, activations=activations)
        if output.is_dir():
            raise FileExistsError(f"{output} is a folder; name a file in it")
        check_free(output, force=force)
    found = evaluated(bundle, activations, settings, any_source=any_source, progress=not quiet)
    host = None if found.host is None else asdict(found.host)
    result = {"bundle": str(bundle), **asdict(found.evaluation), "host": host}
    if output is not None:
        with new_file(output, force=force) as partial:
            partial.write_text(json_format.dumps(result, allow_nan=False) + "\n")
    lines = [("bundle", str(bundle)), *_lines(found)]
    show(_brief(result), lines + ([] if output is None else [("written", str(output))]), json=json)


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _brief(part) for key, part in value.items() if key not in _LONG}
    return value


def _lines(found: Evaluated) -> list[tuple[str, str]]:
    evaluation, decoder = found.evaluation, found.evaluation.decoder
    seen = "never trained on" if evaluation.rows == "held-out" else "perhaps trained on"
    lines = [("measured on", f"{evaluation.tokens:,} tokens of {evaluation.activations}, {seen}")]
    lines += _rule_lines("as served", evaluation.served)
    if evaluation.batch is not None:
        lines += _rule_lines(f"batch rule over {evaluation.batch.batch:,}", evaluation.batch)
    lines += [
        (
            "decoder",
            f"largest cosine to another feature: median {decoder.median:.3f}, 99 % {decoder.high:.3f}, "
            f"above 0.9 {decoder.nearly_equal:.2%}",
        ),
        ("", f"effective rank {decoder.effective_rank:.1f} of {found.manifest.encoder.d_in}"),
    ]
    return lines + ([] if found.host is None else _host_lines(found.host))


def _rule_lines(label: str, rule: RuleEvaluation) -> list[tuple[str, str]]:
    l0 = rule.l0_quantiles
    use = f"dead {rule.dead:.2%}, under-used {rule.under_used:.2%}"
    if rule.zipf is not None:
        law = rule.zipf
        use += f"; Zipf exponent {law.exponent:.2f}, offset {law.offset:.1f}, R^2 {law.r_squared:.3f}"
    return [
        (label, f"FVU {rule.fvu:.4f}, L0 {rule.l0:.2f} (5 % {l0['0.05']:g}, 95 % {l0['0.95']:g})"),
        ("", use),
    ]


def _host_lines(host: HostLoss) -> list[tuple[str, str]]:
    lines = [("model", f"{host.model}, {host.tokens:,} tokens of {', '.join(host.text)} replaced at {host.hook}")]
    if host.cross_entropy is not None:
        lines.append(("untouched", f"cross-entropy {host.cross_entropy:.4f}"))
    for name, result in host.replaced.items():
        numbers = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in result.items())
        lines.append((f"by {name}", numbers))
    return lines
