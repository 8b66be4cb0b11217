"""SAEs of a language model whose first tokens have a massive norm, fitted without these tokens and with them.

It harvests some layers in one pass and prints two tables: the norms of the activations by position, and for each layer
what an SAE explains and what the model loses. Each SAE is fitted twice, with rows of more than 10 times the median norm
left out and with all rows. Both are measured on another text: by the figures of its ordinary tokens, and with those of
massive norm, the sinks.

`make smollm2` makes such a model, SmolLM2-135M-Instruct.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import click
import numpy as np

from sae_runtime.activations.left_out import MAX_NORM, limit, norms
from sae_runtime.activations.stored import Activations, open_activations
from sae_runtime.bundle.evaluation_file import HostLoss, RuleEvaluation
from sae_runtime.train import TrainConfig, fit
from sae_runtime.train.harvest.config import HarvestConfig
from sae_runtime.train.harvest.harvesting import harvest_many
from sae_runtime.train.measure.config import EvaluateConfig
from sae_runtime.train.measure.evaluation import evaluate
from sae_runtime.train.measure.host_loss import host_loss
from sae_runtime.train.measure.torch_sae import open_sae

PLACES = (0, 1, 2, 3, 8, 64)  # positions in a window
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(help=__doc__)
@click.option("--model", default=Path(".venv/smollm2"), type=FOLDER, show_default=True, help="transformers folder")
@click.option("--layer", "layers", multiple=True, type=int, default=(5, 15, 25), show_default=True)
@click.option("--modules", default="layers.{}", show_default=True, help="name of a layer")
@click.option("--text", required=True, type=FILE, help="UTF-8 text to fit on")
@click.option("--other-text", required=True, type=FILE, help="UTF-8 text that the model reads with replacements")
@click.option("--rows", default=200_000, show_default=True, help="tokens to harvest")
@click.option("--context", default=128, show_default=True, help="tokens of a window")
@click.option("--tokens", default=1_000_000, show_default=True, help="tokens to train on, repeats counted")
@click.option("--k", default=32, show_default=True)
@click.option("--d-sae", default=4608, show_default=True)
@click.option("--text-tokens", default=8192, show_default=True, help="tokens to replace")
@click.option(
    "--cache", default=Path("build/language-model"), show_default=True, type=FOLDER, help="keeps what is made"
)
def main(
    model: Path,
    layers: tuple[int, ...],
    modules: str,
    text: Path,
    other_text: Path,
    rows: int,
    context: int,
    tokens: int,
    k: int,
    d_sae: int,
    text_tokens: int,
    cache: Path,
) -> None:
    """Print the tables."""
    base = HarvestConfig(model=str(model), hook=modules.format(layers[0]), text=(text,), context=context, tokens=rows)
    hooks = {f"layer {n}": modules.format(n) for n in layers}
    unseen = dataclasses.replace(base, text=(other_text,), tokens=text_tokens)
    trained_on, measured_on = (_harvested(config, hooks, cache) for config in (base, unseen))
    header = ("", "median norm", *(f"position {p}" for p in PLACES), "left out", "at positions")
    _table(header, (_norms(name, activations, context) for name, activations in trained_on.items()))
    made = []
    for (name, hook), max_norm in product(hooks.items(), (MAX_NORM, None)):
        rule = "all rows" if max_norm is None else "rows left out"
        bundle = cache / f"{name}, {rule}, k {k}, d_sae {d_sae}, {tokens} of {rows} tokens"
        if not bundle.exists():
            config = TrainConfig(k=k, d_sae=d_sae, tokens=tokens, max_norm=max_norm)
            fit(trained_on[name], bundle, config, progress=True)
        sae = open_sae(bundle)
        figures = evaluate(sae, measured_on[name], EvaluateConfig(rows="all", max_norm=MAX_NORM)).served
        host = host_loss(sae, dataclasses.replace(unseen, hook=hook), max_norm=MAX_NORM)
        made.append((f"{name}, {rule}", *_explained(figures), *_lost(host)))
    losses = ("CE", "replaced", "by mean", "by zeros", "recovered (mean)", "recovered (zeros)", "with sinks")
    _table(("fitted on", "FVU", "with sinks", "L0", "dead", *losses), made)


def _harvested(config: HarvestConfig, hooks: Mapping[str, str], cache: Path) -> dict[str, Activations]:
    """The activations of a text at each hook, which are kept in the cache."""
    folder = cache / f"{config.text[0].stem}, {config.tokens} tokens"
    if not folder.exists():
        configs = {name: dataclasses.replace(config, hook=hook) for name, hook in hooks.items()}
        harvest_many(configs, folder, progress=True)
    return {name: open_activations(folder / name) for name in hooks}


def _norms(name: str, activations: Activations, context: int) -> tuple[str, ...]:
    """The mean norm at some positions as a multiple of the median norm, and the rows that are left out."""
    assert activations.positions is not None
    size = norms(activations.slice(0, len(activations)))
    median = float(np.median(size))
    position = activations.positions % context  # in the window, for a tokenizer that adds no tokens
    left_out = size > limit(size, MAX_NORM)
    where = Counter(position[left_out].tolist()).most_common(3)
    return (
        name,
        f"{median:.1f}",
        *(f"{size[position == place].mean() / median:.2f}" for place in PLACES),
        f"{left_out.sum():,} of {len(size):,}",
        ", ".join(f"{place}: {count:,}" for place, count in where),
    )


def _explained(figures: RuleEvaluation) -> tuple[str, ...]:
    every = figures.with_left_out or figures
    return f"{figures.fvu:.4f}", f"{every.fvu:.4f}", f"{figures.l0:.1f}", f"{figures.dead:.2%}"


def _lost(host: HostLoss) -> tuple[str, ...]:
    served, every = host.replaced["served"], (host.with_left_out or host).replaced["served"]
    losses = [host.cross_entropy, *(host.replaced[by]["cross_entropy"] for by in ("served", "mean", "zero"))]
    recovered = served["loss_recovered_mean"], served["loss_recovered_zero"], every["loss_recovered_zero"]
    return *(f"{loss:.3f}" for loss in losses), *(f"{share:.2%}" for share in recovered)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    for row in (header, ("---",) * len(header), *rows):
        click.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
