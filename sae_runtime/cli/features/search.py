"""sae-runtime features search."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.bundle.disk_errors import naming
from sae_runtime.cli import common, texts
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command
from sae_runtime.core.columns import aligned

if TYPE_CHECKING:
    from sae_runtime.store.open_store import Store
    from sae_runtime.store.search import Hit


@click.command("search", cls=Command, group="features", example='sae-runtime features search store "file"')
@click.argument("store")
@click.argument("words", nargs=-1, required=True)
@click.option("--top", type=WHOLE, default=10, help="features to show")
@common.running("json")
def command(store: str, words: Sequence[str], top: int, run: Run) -> None:
    """Find the features of a store that words are about.

    Labels, the tokens that features are strongest on, and contexts are searched. A feature must have every word; words
    in double quotes are a phrase. Case does not count, and no character is a wildcard. A feature that is strongest on
    the word itself comes before one that has it somewhere in a context.

    A feature's line has its number, its label, the share of the tokens on which it is active, and where the words are.
    Below it stands a context with its largest activation.
    """
    from sae_runtime.store.open_store import open_store

    if top < 1:
        raise click.UsageError(f"--top is a number of features from 1 on, got {top}.")
    opened = open_store(store)
    query = " ".join(words)
    found = opened.search(query, top)
    if run.json:
        run.show({"store": store, "query": query, "features": [_as_json(opened, one) for one in found]}, [])
        return
    with naming("standard output"):
        for line in _lines(opened, found, query):
            click.echo(line)


def _as_json(store: "Store", hit: "Hit") -> dict[str, Any]:
    context = hit.context
    shown = None if context is None else {"text": context.text, "value": context.value, "file": context.file}
    return {
        "feature": hit.feature,
        "label": hit.label,
        "label_source": hit.label_source,
        "score": round(hit.score, 6),
        "places": list(hit.places),
        "density": float(store.density[hit.feature]),
        "context": shown and shown | {"row": context and context.row, "licence": context and context.licence},
    }


def _lines(store: "Store", found: Sequence["Hit"], query: str) -> Iterator[str]:
    """Two lines for each feature: what it is and where the words are, and a context."""
    from sae_runtime.cli.features.feature_view import has_colour, marked

    if not found:
        yield texts.one_line(
            f"no feature of {len(store):,} has {query} in its label, its top tokens or its contexts", 1000
        )
        return
    room, digits = texts.columns(), len(str(max(one.feature for one in found)))
    densities = [f"{100 * store.density[one.feature]:.2g} %" for one in found]
    places = [", ".join(one.places) for one in found]
    width = max(room - digits - max(map(len, densities)) - max(map(len, places)) - 6, 20)
    labels = [texts.one_line(one.label or "(no label)", width) for one in found]
    numbers = [str(one.feature) for one in found]
    heads = aligned(list(zip(numbers, labels, densities, places, strict=True)), right=[0, 2])
    for one, head in zip(found, heads, strict=True):
        yield head
        if one.context is not None:
            largest = float(store.max[one.feature])
            text = marked(one.context, largest, room - digits - 10, colour=has_colour(), place=one.place)
            yield f"{' ' * digits}  {one.context.value:6.2f}  {text}".rstrip()
