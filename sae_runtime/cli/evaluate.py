"""sae-runtime evaluate."""

import json as json_format
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from sae_runtime.activations.stored import INDEX, open_activations
from sae_runtime.bundle.evaluation_file import Evaluation, HostLoss, RuleEvaluation, to_json
from sae_runtime.bundle.files import new_file
from sae_runtime.bundle.manifest import Manifest
from sae_runtime.bundle.outputs import Output
from sae_runtime.bundle.typed_json import from_dict
from sae_runtime.cli.common import (
    PATH,
    activations_option,
    any_source_option,
    bundle_argument,
    explained,
    force_option,
    json_option,
    output_option,
    quiet_option,
    show,
)
from sae_runtime.cli.options import Command, build, from_config
from sae_runtime.train.measure.config import EvaluateConfig

_LONG = ("matches", "l0_tokens", "histogram")  # a number for each feature, count or bin: for the file only


def _host_config(bundle: Path, manifest: Manifest, activations: Path, settings: Mapping[str, Any]) -> Any:
    from sae_runtime.train.harvest.config import HarvestConfig

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


@dataclass(frozen=True)
class _Windows:
    """Which tokens `harvest` kept and in what windows, as far as its index says so."""

    document: str | None = None
    context: int | None = None
    special: bool | None = None


def _as_harvested(activations: Path) -> dict[str, Any]:
    """The windows of a folder of activations, as settings of a harvest; none of a plain file."""
    index = activations / INDEX
    if not index.is_file():
        return {}
    try:
        windows = from_dict(_Windows, json_format.loads(index.read_text()), str(index), more=True)
    except ValueError as error:
        raise ValueError(f"{error}; harvest again") from error
    return {name: value for name, value in asdict(windows).items() if value is not None}


@click.command("evaluate", cls=Command)
@bundle_argument
@activations_option
@click.option("--targets", type=PATH, help="of a transcoder: the activations that it reconstructs, row by row")
@from_config(EvaluateConfig)
@click.option("--model", help="transformers folder or hub name: also measure what this model loses")
@click.option("--text", type=PATH, multiple=True, help="text for --model, as harvest reads it; may be repeated")
@click.option("--hook", help="module of the model whose output is replaced [the bundle's]")
@click.option("--text-tokens", type=click.INT, default=8192, help="tokens of the text to replace at most")
@click.option("--batch-tokens", type=click.INT, default=2048, help="tokens per forward pass of the model")
@output_option("JSON file of all numbers, which report reads", default=None)
@any_source_option
@force_option
@quiet_option
@json_option
def command(
    bundle: Path,
    activations: Path,
    targets: Path | None,
    output: Path | None,
    any_source: bool,
    force: bool,
    quiet: bool,
    json: bool,
    **settings: Any,
) -> None:
    """Measure what a bundle explains, and what a model loses.

    By the served rule and by the batch rule: variance explained, active features, their use, and the decoder. With
    --model and --text also what the model loses when its activations are replaced by reconstructions. Of a transcoder,
    variance explained is left out unless --targets gives what it reconstructs.
    """
    if output is not None:
        inputs = {"bundle": bundle, "activations": activations, **({} if targets is None else {"targets": targets})}
        Output(path=output, kind="file", force=force, inputs=inputs).check()
    found = _evaluated(bundle, activations, targets, settings, any_source=any_source, progress=not quiet)
    if output is not None:
        with new_file(output, force=force) as partial:
            partial.write_text(to_json(found))
    lines = [("bundle", str(bundle)), *_lines(found)]
    show(_brief(asdict(found)), lines + ([] if output is None else [("written", str(output))]), json=json)


def _evaluated(
    bundle: Path,
    activations: Path,
    targets: Path | None,
    settings: Mapping[str, Any],
    *,
    any_source: bool,
    progress: bool,
) -> Evaluation:
    if (settings["model"] is None) != (not settings["text"]):
        raise click.UsageError("--model and --text go together: the model reads the text.")
    config = build(EvaluateConfig, settings)
    from sae_runtime.train.device import usable_device  # torch: not for --help
    from sae_runtime.train.measure.evaluation import evaluate
    from sae_runtime.train.measure.host_loss import host_loss
    from sae_runtime.train.measure.torch_sae import open_sae

    source = open_activations(activations)
    sae = open_sae(bundle, usable_device(config.device))
    host_config = None
    if settings["model"] is not None:
        sae.refuse_transcoder()
        host_config = _host_config(bundle, sae.manifest, activations, settings)
    found = evaluate(sae, source, config, targets=targets, any_source=any_source, progress=progress)
    return found if host_config is None else replace(found, host=host_loss(sae, host_config, progress=progress))


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _brief(part) for key, part in value.items() if key not in _LONG}
    return value


def _lines(found: Evaluation) -> list[tuple[str, str]]:
    decoder = found.decoder
    seen = "never trained on" if found.rows == "held-out" else "perhaps trained on"
    lines = [("measured on", f"{found.tokens:,} tokens of {found.activations}, {seen}")]
    lines += _rule_lines("as served", found.served)
    if found.batch is not None:
        lines += _rule_lines(f"batch rule over {found.batch.batch:,}", found.batch)
    lines += [
        (
            "decoder",
            f"largest cosine to another feature: median {decoder.median:.3f}, 99 % {decoder.high:.3f}, "
            f"above 0.9 {decoder.nearly_equal:.2%}",
        ),
        ("", f"effective rank {decoder.effective_rank:.1f} of {found.architecture.d_x_hat}"),
    ]
    return lines + ([] if found.host is None else _host_lines(found.host))


def _rule_lines(label: str, rule: RuleEvaluation) -> list[tuple[str, str]]:
    l0 = rule.l0_quantiles
    use = f"dead {rule.dead:.2%}, under-used {rule.under_used:.2%}"
    if rule.zipf is not None:
        law = rule.zipf
        use += f"; Zipf exponent {law.exponent:.2f}, offset {law.offset:.1f}, R^2 {law.r_squared:.3f}"
    return [
        (label, f"{explained(rule.fvu)}L0 {rule.l0:.2f} (5 % {l0['0.05']:g}, 95 % {l0['0.95']:g})"),
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
