"""sae-runtime features show."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common, texts
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command

if TYPE_CHECKING:
    from sae_runtime.model import Model, TextFeatures

_WIDEST = 20  # columns of a token


@click.command(
    "show", cls=Command, group="features", example='sae-runtime features show model --text "Open the file and read it."'
)
@texts.model
@texts.given("a text")
@click.option("--top", type=WHOLE, default=3, help="features of a token")
@click.option("--special", is_flag=True, help="show special tokens too, in angle brackets")
@texts.sae
@common.session
@common.running("json")
def command(
    model: str, texts: list[str], top: int, special: bool, sae: str | None, session: dict[str, Any], run: Run
) -> None:
    """Show the strongest features of every token of texts.

    Each feature has its number, its activation on the token and, where the bundle's labels.jsonl has one, its label.
    """
    from sae_runtime.model import load_model

    if top < 1:
        raise click.UsageError(f"--top is a number of features from 1 on, got {top}.")
    opened = load_model(model, **session)
    names = [opened.sae(sae).name] if sae is not None else list(opened.saes)
    seen = opened.features(texts)
    if run.json:
        run.show({"model": model, "texts": [_as_json(opened, one, names, top, special) for one in seen]}, [])
        return
    for number, one in enumerate(seen):
        for line in _lines(opened, one, names, top, special):
            click.echo(line)
        if number + 1 < len(seen):
            click.echo()
