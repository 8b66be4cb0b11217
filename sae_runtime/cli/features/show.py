"""sae-runtime features show."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.bundle.disk_errors import naming
from sae_runtime.cli import common, texts
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command
from sae_runtime.core.columns import aligned, cut

if TYPE_CHECKING:
    from sae_runtime.deployed.text_features import TextFeatures
    from sae_runtime.model import Model

_WIDEST = 24  # columns of a token
_NUMBERS = 14  # columns of a feature and its activation
_AT_ONCE = 64  # texts that are read before they are shown


@click.command(
    "show",
    cls=Command,
    group="features",
    example="sae-runtime features show store 371",
)
@click.argument("target")
@click.argument("feature", required=False)
@texts.texts("a text")
@click.option("--top", type=WHOLE, default=3, help="features of a token")
@click.option("--contexts", type=WHOLE, default=3, help="contexts of each band, of a feature of a store")
@click.option("--special", is_flag=True, help="show special tokens too, in angle brackets")
@texts.sae
@common.session
@common.running("json")
def command(
    target: str,
    feature: str | None,
    texts: list[str],
    top: int,
    contexts: int,
    special: bool,
    sae: str | None,
    session: dict[str, Any],
    run: Run,
) -> None:
    """Show a feature of a store, or the features of each token of texts.

    Of a store, what `features build` wrote, FEATURE is a number or a label. Its figures are shown, the tokens and
    features that it goes with, and its contexts from the largest activations down. A terminal shades active tokens;
    elsewhere they stand in brackets, the strongest in two.

    Of a deployed model, --text or --text-file gives texts. Each token has its strongest features: number, activation
    and, where the bundle's labels.jsonl has one, label. A dot is a blank at an end of a token.
    """
    if feature is not None or (Path(target) / "store.json").is_file():
        if texts or special or sae is not None:
            raise click.UsageError(f"{target} is a store; --text, --text-file, --special and --sae are for a model.")
        if feature is None:
            raise click.UsageError(f"Name a feature of the store: features show {target} 371, or its label.")
        if contexts < 0:
            raise click.UsageError(f"--contexts is a number of contexts from 0 on, got {contexts}.")
        _show_stored(target, feature, contexts, run)
        return
    if not texts:
        raise click.UsageError("Give a text, --text or --text-file; or name a store and a feature.")
    if top < 1:
        raise click.UsageError(f"--top is a number of features from 1 on, got {top}.")
    _show_texts(target, texts, top, special, sae, session, run)


def _show_stored(path: str, feature: str, contexts: int, run: Run) -> None:
    from sae_runtime.cli.features.feature_view import as_json, lines
    from sae_runtime.store.open_store import open_store

    store = open_store(path)
    one = store.feature(feature)
    if run.json:
        run.show(as_json(store, one, contexts), [])
        return
    with naming("standard output"):
        for line in lines(store, one, contexts):
            click.echo(line)


def _show_texts(
    model: str, texts: list[str], top: int, special: bool, sae: str | None, session: dict[str, Any], run: Run
) -> None:
    from sae_runtime.model import load_model

    opened = load_model(model, **session)
    read = [name for name, one in opened.saes.items() if one.reads]
    labels = {name: labels_of(opened, name) for name in (read if sae is None else [sae])}
    begins = range(0, len(texts), _AT_ONCE)
    seen = (one for begin in begins for one in opened.features(texts[begin : begin + _AT_ONCE]))
    if run.json:
        run.show({"model": model, "texts": [_as_json(one, labels, top, special) for one in seen]}, [])
        return
    with naming("standard output"):
        for number, one in enumerate(seen):
            lines = [line for name, known in labels.items() for line in _table(one, name, known, top, special)]
            click.echo("\n".join([*([""] if number else []), *_heading(one, len(texts)), *lines]))


def labels_of(model: "Model", sae: str) -> Mapping[int, str]:
    """The labels of an SAE's features; none where the model has no bundle of it.

    Raises:
        ValueError: the model has no SAE of this name.
    """
    read = [name for name, one in model.saes.items() if one.reads]
    if sae not in read:
        raise ValueError(f"the model has no SAE {sae!r} that gives features; it has {', '.join(read) or 'none'}")
    one = model.saes[sae]
    return {} if one.bundle is None else one.labels


def _as_json(seen: "TextFeatures", labels: Mapping[str, Mapping[int, str]], top: int, special: bool) -> dict[str, Any]:
    def token(number: int) -> dict[str, Any]:
        begin, end = seen.offsets[number].tolist()
        place = {"token": seen.tokens[number], "begin": begin, "end": end, "special": bool(seen.special[number])}
        return place | {
            "features": {
                name: [
                    {"feature": feature, "value": value, "label": known.get(feature)}
                    for feature, value in _strongest(seen, name, number, top)
                ]
                for name, known in labels.items()
            }
        }

    return {"text": seen.text, "tokens": [token(number) for number in _chosen(seen, special)]}


def _heading(seen: "TextFeatures", count: int) -> Iterator[str]:
    """A line that names a text among several."""
    if count > 1:
        yield texts.title(seen.text)


def _table(seen: "TextFeatures", sae: str, labels: Mapping[int, str], top: int, special: bool) -> Iterator[str]:
    """A line for each token; where features have labels, a line for each feature."""
    rows: list[list[str]] = []
    room = max(texts.columns() - _WIDEST - _NUMBERS, 10)
    for number in _chosen(seen, special):
        cells = [
            (str(feature), f"{value:.2f}", texts.one_line(labels.get(feature, ""), room))
            for feature, value in _strongest(seen, sae, number, top)
        ] or [("-", "", "")]
        token = _token(seen, number)
        if labels:
            rows += [["" if row else token, *cell] for row, cell in enumerate(cells)]
        else:
            numbers = [part for cell in cells for part in cell[:2]]
            rows.append([token, *numbers, *[""] * (2 * top - len(numbers))])
    if len(seen.saes) > 1:
        yield f"{sae}:"
    if not rows:
        yield "(no token of the text; --special shows the others)"
        return
    yield from aligned(rows, right=[1, 2] if labels else range(1, 1 + 2 * top))


def _chosen(seen: "TextFeatures", special: bool) -> Sequence[int]:
    """The numbers of the tokens to show."""
    return [number for number, is_special in enumerate(seen.special.tolist()) if special or not is_special]


def _strongest(seen: "TextFeatures", sae: str, token: int, top: int) -> list[tuple[int, float]]:
    features, values = seen.saes[sae].row(token)
    return list(zip(features[:top].tolist(), values[:top].tolist(), strict=True))


def _token(seen: "TextFeatures", number: int) -> str:
    """A token's part of the text; a special one's name."""
    begin, end = seen.offsets[number].tolist()
    inside = begin < end and not seen.special[number]
    return cut(texts.shown_token(seen.text[begin:end]) if inside else f"<{seen.tokens[number].strip('<>[]')}>", _WIDEST)
