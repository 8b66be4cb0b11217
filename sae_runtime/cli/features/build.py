"""sae-runtime features build."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command


@click.command("build", cls=Command, group="features", example="sae-runtime features build features -o store --sae sae")
@click.argument("features", type=common.PATH)
@common.output("folder of the store")
@click.option(
    "--sae", metavar="BUNDLE", help="the bundle that the features come from, or a deployed model's copy of it"
)
@click.option("--tokenizer", type=common.PATH, help="folder with the tokenizer, for features of activations")
@click.option("--licence", help="licence of documents whose licence the features do not tell")
@click.option("--context", type=WHOLE, default=64, help="tokens of a context")
@click.option("--bands", type=WHOLE, default=5, help="quantile bands of a feature's activations")
@click.option("--top", type=WHOLE, default=20, help="contexts of the top band")
@click.option("--per-band", type=WHOLE, default=5, help="contexts of each other band")
@click.option("--bins", type=WHOLE, default=20, help="bins of a histogram")
@click.option(
    "--sample",
    type=WHOLE,
    default=100_000,
    help="tokens on which features that are active together are counted; 0: none",
)
@common.running("force", "quiet", "json")
def command(features: Path, output: Path, sae: str | None, tokenizer: Path | None, run: Run, **settings: Any) -> None:
    """Build a feature store: what each feature of a corpus does.

    FEATURES is the folder that `sae-runtime extract` writes. For each feature the store has density, histogram, the
    largest contexts of each quantile band, top tokens, features that are active together, and with --sae neighbours,
    promoted tokens and labels. All of it is exact but the features that are active together, which come from a sample.
    """
    from sae_runtime.bundle.hub import local
    from sae_runtime.store.build_store import build_store, store_output

    bundle = None if sae is None else common.own_bundle(local(sae))
    inputs = {"input": features} | ({} if bundle is None else {"bundle": bundle})
    store_output(output, force=run.force, inputs=inputs).check()
    names = None if tokenizer is None else _names(tokenizer)
    made = build_store(features, output, sae=bundle, names=names, **settings, **run.options)
    contexts = common.plural(made.contexts, "context")
    lines = [
        ("store", output),
        ("features", f"{made.features:,}, {made.active:,} of them active; {contexts}"),
        ("size", f"{made.size:,} bytes"),
        *(("left out" if number == 0 else "", sentence) for number, sentence in enumerate(made.left_out)),
    ]
    run.show({"store": output, **asdict(made)}, lines)


def _names(folder: Path) -> dict[int, str]:
    """The names of a tokenizer's tokens."""
    from sae_runtime.text.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(folder)
    names = ((number, tokenizer.token(number)) for number in range(tokenizer.size))
    return {number: name for number, name in names if name is not None}
