"""sae-runtime features find."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.bundle.disk_errors import naming
from sae_runtime.cli import common, texts
from sae_runtime.cli.common import Run
from sae_runtime.cli.features.sets import Sets, sets
from sae_runtime.cli.features.show import labels_of
from sae_runtime.cli.options import WHOLE, Command
from sae_runtime.core.columns import aligned

if TYPE_CHECKING:
    from sae_runtime.extraction.contrast import RankedFeature
    from sae_runtime.extraction.finding import Found

_FEW = 10  # held-out texts of a set below which a note is printed
_NUMBERS = 68  # columns of the table without labels


@click.command(
    "find",
    cls=Command,
    group="features",
    example="sae-runtime features find model --about files.txt --against others.txt",
)
@texts.model
@sets
@click.option(
    "--pool",
    type=click.Choice(("max", "mean", "sum")),
    default="max",
    help="how activations on the tokens of a text become one number",
)
@click.option("--top", type=WHOLE, default=10, help="features to show")
@click.option("--examples", type=WHOLE, default=2, help="texts to show for each feature")
@click.option("--seed", type=WHOLE, default=0, help="of the halves that rank and measure")
@texts.sae
@common.session
@common.running("quiet", "json")
def command(
    model: str,
    sets: Sets,
    pool: Any,
    top: int,
    examples: int,
    seed: int,
    sae: str | None,
    session: dict[str, Any],
    run: Run,
) -> None:
    """Find the features that tell two sets of texts apart.

    Half of the texts rank the features, and the other half measure them. AUC is the chance that a feature is stronger
    in a text of its set than in one of the other set: 1 tells the sets apart, 0.5 says nothing. Beside it stands its
    95 % confidence interval; an AUC whose interval holds 0.5 may be chance. Density, the share of texts in which the
    feature is active, and mean are those of the texts about / against. d is Cohen's d. The lines below give the tokens
    where the feature is strongest.
    """
    from sae_runtime.extraction.finding import find
    from sae_runtime.model import load_model

    for name, number in (("top", top), ("examples", examples), ("seed", seed)):
        if number < (name == "top"):
            raise click.UsageError(f"--{name} is a whole number from {int(name == 'top')} on, got {number}.")
    opened = load_model(model, **session)
    about, against = sets
    settings: dict[str, Any] = {"count": top, "examples": examples, "seed": seed, "progress": not run.quiet}
    found = find(opened, about, against, sae=sae, pool=pool, **settings)
    labels = labels_of(opened, found.sae)
    if run.json:
        run.show(_as_json(found, labels, pool), [])
        return
    with naming("standard output"):
        for line in _lines(found, labels, opened.saes[found.sae].d_sae, pool):
            click.echo(line)


def _as_json(found: "Found", labels: Mapping[int, str], pool: str) -> dict[str, Any]:
    ranking = found.contrast
    features = [
        dataclasses.asdict(one)
        | {"label": labels.get(one.feature)}
        | {"examples": [dataclasses.asdict(example) | {"text": found.texts[example.text]} for example in examples]}
        for one, examples in zip(ranking.features, found.examples, strict=True)
    ]
    counts = {"ranked_on": ranking.ranked_on, "measured_on": ranking.measured_on, "held_out": ranking.held_out}
    left_out = {"twice": found.twice, "in_both": found.in_both}
    return {"sae": found.sae, "pool": pool, **counts, **left_out, "active": ranking.active, "features": features}


def _lines(found: "Found", labels: Mapping[int, str], d_sae: int, pool: str) -> Iterator[str]:
    yield from _heading(found, d_sae, pool)
    ranking = found.contrast
    if not ranking.features:
        yield "no feature is active in these texts"
        return
    room = max(texts.columns() - _NUMBERS, 10)
    header = ["feature", "more", "AUC", "95 %", "density, %", "mean", "d", "label" if labels else ""]
    rows = [[*_cells(one), texts.one_line(labels.get(one.feature, ""), room)] for one in ranking.features]
    table = aligned([header, *rows], right=[0, 2, 6])
    yield table[0]
    for line, examples in zip(table[1:], found.examples, strict=True):
        yield line
        for example in examples:
            text = texts.around(found.texts[example.text], example.begin, example.end, texts.columns() - 18)
            yield f"{example.value:>16.2f}  {text}"


def _heading(found: "Found", d_sae: int, pool: str) -> Iterator[str]:
    ranking = found.contrast
    ranked, measured = (
        "{} + {}".format(*map("{:,}".format, sizes)) for sizes in (ranking.ranked_on, ranking.measured_on)
    )
    yield f"{ranking.active:,} of {d_sae:,} features are active; each counts by its {pool} over a text's tokens"
    if ranking.held_out:
        yield f"texts about + against: {ranked} ranked the features, {measured} others measured them"
    else:
        yield f"texts about + against: {ranked}"
        yield "note: a set has one text, so nothing is held out, and an AUC of 1 says nothing; give more texts"
    left = [f"{found.twice:,} that came twice"] * (found.twice > 0) + [f"{found.in_both:,} in both sets"] * (
        found.in_both > 0
    )
    if left:
        yield f"texts left out: {', '.join(left)}"
    if ranking.held_out and min(ranking.measured_on) < _FEW:
        yield "note: these are few texts; an AUC whose interval holds 0.5 may be chance"
    yield ""


def _cells(one: "RankedFeature") -> list[str]:
    """The figures of a feature; those of both sets as about / against."""
    low, high = one.interval
    return [
        str(one.feature),
        one.more,
        f"{one.auc:.2f}",
        f"{low:.2f}-{high:.2f}",
        "{:.1f} / {:.1f}".format(*(100 * share for share in one.density)),
        "{:.3g} / {:.3g}".format(*one.mean),
        f"{one.d:+.2f}" if math.isfinite(one.d) else f"{one.d:+}",
    ]
