"""sae-runtime evaluate."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run, explained
from sae_runtime.cli.options import WHOLE, Command, from_config
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.measure.config import EvaluateConfig

if TYPE_CHECKING:
    from sae_runtime.bundle.evaluation_file import Evaluation, HostLoss, RuleEvaluation
    from sae_runtime.bundle.folder import Bundle

_LONG = ("matches", "largest", "l0_tokens", "histogram")  # a number for each feature, count or bin: for the file only


@click.command("evaluate", cls=Command, example="sae-runtime evaluate sae --activations acts -o evaluation.json")
@common.bundle
@common.activations
@click.option("--targets", type=common.PATH, help="of a transcoder: the activations that it reconstructs, row by row")
@from_config(EvaluateConfig)
@click.option("--model", help="transformers folder or hub name: also measure what this model loses")
@click.option("--text", type=common.PATH, multiple=True, help="text for --model, as harvest reads it; may be repeated")
@from_config(HarvestConfig, "fields", make=dict, only=("text_field", "ids_field"), note="of --text")
@click.option("--hook", help="activation of the model that is replaced, as harvest names it [the bundle's]")
@click.option("--text-tokens", type=WHOLE, default=8192, help="tokens of the text to replace at most")
@click.option("--skip-first", type=WHOLE, help="first positions of each window to leave as they are [as harvested]")
@click.option(
    "--skip-token", multiple=True, help="token to leave as it is: an id, or its text; may be repeated [as harvested]"
)
@click.option("--batch-tokens", type=WHOLE, default=2048, help="tokens per forward pass of the model")
@common.output("JSON file of all numbers, which report reads", required=False)
@click.option(
    "--stats", "keep_stats", is_flag=True, help="keep each feature's density and largest activation in the bundle"
)
@common.any_source
@common.running("force", "quiet", "json")
def command(
    bundle: str,
    activations: Path,
    targets: Path | None,
    config: EvaluateConfig,
    output: Path | None,
    keep_stats: bool,
    any_source: bool,
    run: Run,
    fields: dict[str, Any],
    **reading: Any,
) -> None:
    """Measure what a bundle explains, and what a model loses.

    By the served rule and by the batch rule: variance explained, active features, their use, and the decoder. With
    --model and --text also what the model loses when its activations are replaced by reconstructions. Of a transcoder,
    variance explained is left out unless --targets gives the activations that it reconstructs.
    """
    if (reading["model"] is None) != (not reading["text"]):
        raise click.UsageError("--model and --text go together: the model reads the text.")
    from sae_runtime.bundle.evaluation_file import to_json
    from sae_runtime.bundle.files import new_file
    from sae_runtime.bundle.folder import read, refuse_kept
    from sae_runtime.bundle.hub import local
    from sae_runtime.bundle.outputs import Output

    folder = local(bundle)
    if output is not None:
        inputs = {"bundle": folder, "activations": activations, **({} if targets is None else {"targets": targets})}
        Output(path=output, kind="file", force=run.force, inputs=inputs).check()
    before = read(folder, verify=False)
    if keep_stats:
        refuse_kept(folder)
    reading |= fields
    evaluation = _evaluated(folder, activations, config, reading, run, targets=targets, any_source=any_source)
    lines = [("bundle", bundle), *_lines(evaluation)]
    if output is not None:
        with new_file(output, force=run.force) as partial:
            partial.write_text(to_json(evaluation))
        lines.append(("written", str(output)))
    if keep_stats:
        lines.append(("kept", _kept(before, evaluation)))
    run.show(_brief(asdict(evaluation)), lines)


def _kept(bundle: "Bundle", evaluation: "Evaluation") -> str:
    """Put the use of each feature by the served rule into the measured bundle, and give the name of the file."""
    import numpy as np

    from sae_runtime.bundle.folder import WEIGHTS, put_stats, read
    from sae_runtime.bundle.stats import FILE, counted

    served = evaluation.served
    now = read(bundle.path)  # an export may have added graphs
    bundle.refuse_change(WEIGHTS)
    put_stats(now, counted(np.array(served.matches), np.array(served.largest), evaluation.tokens))
    return str(bundle.path / FILE)


def _evaluated(
    folder: Path, activations: Path, config: EvaluateConfig, reading: dict[str, Any], run: Run, **settings: Any
) -> "Evaluation":
    """The evaluation on activations and, where a model is named, on its text."""
    from sae_runtime.bundle.extras import require

    require("train")
    from sae_runtime.activations.stored import open_activations
    from sae_runtime.bundle.manifest import LeftOut
    from sae_runtime.bundle.plausible import warn_of_other_rows
    from sae_runtime.train.device import usable_device
    from sae_runtime.train.harvest.config import as_harvested
    from sae_runtime.train.measure.evaluation import evaluate
    from sae_runtime.train.measure.host_loss import host_loss
    from sae_runtime.train.measure.torch_sae import open_sae

    source = open_activations(activations)
    sae = open_sae(folder, usable_device(config.device))
    host_config = None
    if reading["model"] is not None:
        sae.refuse_transcoder()
        hook = reading["hook"] or sae.manifest.hook
        if hook is None:
            raise ValueError(f"{folder} does not know its hook; name it with --hook")
        tokens = reading.pop("text_tokens")
        chosen = {name: value for name, value in reading.items() if value not in (None, ())}
        left_out = sae.manifest.left_out or LeftOut()
        known = {"skip_first": left_out.first_positions, "skip_token": tuple(map(str, left_out.token_ids))}
        settings_of_host = {**known, **as_harvested(activations), **chosen, "hook": hook, "device": config.device}
        host_config = HarvestConfig(tokens=tokens, **settings_of_host)
    measured = evaluate(sae, source, config, progress=not run.quiet, **settings)
    served = measured.served
    fvu = served.fvu if config.max_norm is None else None  # by another rule it is of other rows than the bundle's
    warn_of_other_rows(sae.manifest, source.path, tokens=measured.tokens, l0=served.l0, fvu=fvu)
    if host_config is None:
        return measured
    return replace(measured, host=host_loss(sae, host_config, max_norm=config.max_norm, progress=not run.quiet))


def _brief(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _brief(part) for key, part in value.items() if key not in _LONG}
    return value


def _lines(evaluation: "Evaluation") -> list[tuple[str, str]]:
    decoder = evaluation.decoder
    seen = "never trained on" if evaluation.rows == "held-out" else "perhaps trained on"
    lines = [("measured on", f"{evaluation.tokens:,} tokens of {evaluation.activations}, {seen}")]
    lines += common.left_out(evaluation.left_out, evaluation.tokens, evaluation.max_norm)
    lines += _rule_lines("as served", evaluation.served)
    if evaluation.batch is not None:
        lines += _rule_lines(f"batch rule over {evaluation.batch.batch:,}", evaluation.batch)
    cosines = f"median {decoder.median:.3f}, 99 % {decoder.high:.3f}, above 0.9 {decoder.nearly_equal:.2%}"
    lines += [
        ("decoder", f"largest cosine to another feature: {cosines}"),
        ("", f"effective rank {decoder.effective_rank:.1f} of {evaluation.architecture.d_x_hat}"),
    ]
    return lines + ([] if evaluation.host is None else _host_lines(evaluation.host))


def _rule_lines(label: str, rule: "RuleEvaluation") -> list[tuple[str, str]]:
    l0, law = rule.l0_quantiles, rule.zipf
    use = f"dead {rule.dead:.2%}, under-used {rule.under_used:.2%}"
    if law is not None:
        use += f"; Zipf exponent {law.exponent:.2f}, offset {law.offset:.1f}, R^2 {law.r_squared:.3f}"
    spread = f"(5 % {l0['0.05']:g}, 95 % {l0['0.95']:g})"
    lines = [(label, f"{explained(rule.fvu)}L0 {rule.l0:.2f} {spread}"), ("", use)]
    if rule.with_left_out is not None:
        every = rule.with_left_out
        figures = f"{explained(every.fvu)}L0 {every.l0:.2f}, dead {every.dead:.2%}"
        lines.append(("", f"with those left out: {figures} on {every.tokens:,} tokens"))
    return lines


def _host_lines(host: "HostLoss") -> list[tuple[str, str]]:
    lines = [("model", f"{host.model}, {host.tokens:,} tokens of {', '.join(host.text)} replaced at {host.hook}")]
    if host.with_left_out is not None:
        lines += common.left_out(host.left_out, host.tokens, host.max_norm)
        lines[-1] = ("", f"{lines[-1][1]} keep their own activation")
    lines += _loss_lines(host)
    if host.with_left_out is not None:
        lines += [("all replaced", "the tokens of massive norm too:"), *_loss_lines(host.with_left_out)]
    return lines


def _loss_lines(host: "HostLoss") -> list[tuple[str, str]]:
    lines = []
    if host.cross_entropy is not None:
        lines.append(("untouched", f"cross-entropy {host.cross_entropy:.4f}"))
    for name, result in host.replaced.items():
        numbers = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in result.items())
        lines.append((f"by {name}", numbers))
    return lines
