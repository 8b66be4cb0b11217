"""sae-runtime extract."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sae_runtime.bundle.graphs import ENCODERS
from sae_runtime.cli import common, parallel, texts
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command, from_config
from sae_runtime.train.harvest.config import HarvestConfig

if TYPE_CHECKING:
    from sae_runtime.bundle.manifest import Manifest
    from sae_runtime.extraction.part_rows import Source
    from sae_runtime.sae import SAE

_READING = ("text", "document", "text_field", "ids_field", "id_field", "context", "special")
_OF_TEXTS = (*_READING, "columns", "sae", "no_text")
_OF_ACTIVATIONS = ("graph", "any_source", "format", "sequence")


@click.command(
    "extract",
    cls=Command,
    example="sae-runtime extract model --text data/*.parquet -o features",
    spread=("--text",),
)
@click.argument("model")
@from_config(HarvestConfig, "reading", make=dict, only=_READING, note="of texts")
@click.option("--columns", metavar="A,B", help="of texts: other fields or columns to keep with each document")
@texts.sae
@click.option("--no-text", is_flag=True, help="of texts: do not keep them beside the features")
@click.option("--licence", metavar="TEXT", help="licence of the texts, to keep with each document")
@click.option("--activations", type=common.PATH, help=f"of a bundle: {common.ACTIVATIONS}")
@click.option("--per", type=click.Choice(["token", "document"]), default="token", help="what a row of features is of")
@click.option(
    "--pool",
    type=click.Choice(["max", "mean", "sum"]),
    default="max",
    help="per document: what becomes of a feature's activations on its tokens",
)
@click.option(
    "--rule",
    type=click.Choice(["served", "batch"]),
    default="served",
    help="select for every token by itself, or the largest activations of all tokens together",
)
@click.option(
    "--values",
    type=click.Choice(["float24", "float32", "float16"]),
    help="how exact values are on disk; float24 is float32 with 16 significant bits [float24; float16 for delphi]",
)
@click.option(
    "--format",
    type=click.Choice(["parquet", "delphi"]),
    default="parquet",
    help="Parquet, or of activations a cache for EleutherAI's delphi",
)
@click.option("--sequence", type=WHOLE, default=256, help="tokens of a sequence, for delphi")
@click.option(
    "--graph",
    type=click.Choice(ENCODERS),
    help="of activations: the graph that encodes; all give the same features [by the SAE's size]",
)
@common.output("folder to make, or to finish: the same command goes on where it was interrupted")
@parallel.options
@common.any_source
@common.session
@common.running("force", "quiet", "json")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    reading: dict[str, Any],
    activations: Path | None,
    format: Any,
    sequence: int,
    per: Any,
    pool: Any,
    rule: Any,
    values: Any,
    output: Path,
    run: Run,
    plan_only: bool,
    share: tuple[int, int] | None,
    **settings: Any,
) -> None:
    """Write the features of texts, or of activations, to a folder.

    MODEL is a deployed model, which reads --text, or a bundle, which reads --activations. The folder holds Parquet
    files: tokens/ has a row per token with doc, pos, token, its characters, indices (ascending) and values, and
    documents/ leads each document back to its file and row.
    """
    _refuse_mixed(ctx, reading["text"], activations)
    parallel.refuse_mixed(ctx)
    if ctx.get_parameter_source("context") is ParameterSource.DEFAULT:
        reading["context"] = None  # fewer where the model reads no more
    if format == "delphi":
        _delphi(model, activations, output, run, rule, values or "float16", sequence, settings)
        return
    from sae_runtime.bundle.extras import require
    from sae_runtime.extraction.extract import check_out, extract
    from sae_runtime.extraction.shares import make_share
    from sae_runtime.extraction.shares import plan_only as planned

    require(*["cpu", "text", "extract"] if reading["text"] else ["cpu", "extract"])
    engine = parallel.engine_of(settings)
    read = {"text": reading["text"], "activations": [activations] if activations else []}
    check_out(output, {**read, "model" if activations is None else "bundle": [Path(model)]})
    manifest: Manifest | None
    if activations is None:
        source, manifest = _texts(model, reading, settings), None
    else:
        source, manifest = _rows(model, activations, settings)
    asked = {"per": per, "pool": pool, "rule": rule, "values": values or "float24"}
    if plan_only:
        plan = planned(source, output, force=run.force, **asked)
        run.show({"features": output, "parts": len(plan.parts)}, [("plan", output), ("parts", f"{len(plan.parts):,}")])
        return
    with common.resumable(output, "the same command goes on from there"):
        if share is not None:
            number = make_share(source, output, share, engine=engine, progress=run.options["progress"], **asked)
            run.show({"features": output, "parts": number}, [("features", output), ("parts made", f"{number:,}")])
            return
        made = extract(source, output, engine=engine, **asked, **run.options)
    l0 = made.matches / made.rows if made.rows else 0.0
    if manifest is not None and activations is not None and per == "token":
        _warn(manifest, activations, made.tokens, l0)
    tokens, documents = common.plural(made.tokens, "token"), common.plural(made.documents, "document")
    matches = f"{common.plural(made.matches, 'match')} ({l0:.4g} a {per})"
    lines = [
        ("features", output),
        ("rows", f"{tokens}{f' of {documents}' if made.documents else ''}, {matches}"),
        ("size", f"{made.size:,} bytes in {common.plural(made.parts, 'part')}"),
    ]
    run.show({"features": output, **dataclasses.asdict(made)}, lines)


def _refuse_mixed(ctx: click.Context, text: Sequence[Path], activations: Path | None) -> None:
    """Refuse options that do not go together. What the environment or a file says of the other source is ignored."""
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if bool(text) == (activations is not None):
        both = ", not both" if text else ": a deployed model reads texts, a bundle activations"
        raise click.UsageError(f"Give --text or --activations{both}.", ctx)
    others, own = (_OF_ACTIVATIONS, "text") if text else (_OF_TEXTS, "activations")
    for name in others:
        if name in given and (name, ctx.params[name]) != ("format", "parquet"):
            other = "activations" if text else "text"
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --{other}, not with --{own}.", ctx)
    if "pool" in given and ctx.params["per"] == "token":
        raise click.UsageError("--pool goes with --per document.", ctx)
    for name in ("sequence",) if ctx.params["format"] != "delphi" else ("per", "pool", "licence"):
        if name in given:
            other = "delphi" if name == "sequence" else "parquet"
            raise click.UsageError(f"--{name} goes with --format {other}.", ctx)


def _texts(model: str, reading: Mapping[str, Any], settings: Mapping[str, Any]) -> "Source":
    from sae_runtime.activations.reading import Reading
    from sae_runtime.bundle.parts import MANIFEST
    from sae_runtime.extraction.text_source import TextSource
    from sae_runtime.model import load_model

    if (Path(model) / MANIFEST).is_file():
        raise ValueError(
            f"{model} is a bundle, which reads --activations; for --text name a model that it was spliced into"
        )
    columns = tuple(dict.fromkeys(filter(None, map(str.strip, (settings["columns"] or "").split(",")))))
    where = Reading(
        **{name: reading[name] for name in ("document", "text_field", "ids_field", "id_field")}, columns=columns
    )
    return TextSource(
        load_model(model, **settings["session"]),
        reading["text"],
        sae=settings["sae"],
        reading=where,
        context=reading["context"],
        special=reading["special"],
        licence=settings["licence"],
        keep_text=not settings["no_text"],
    )


def _rows(bundle: str, activations: Path, settings: Mapping[str, Any]) -> "tuple[Source, Manifest]":
    from sae_runtime.extraction.array_source import ArraySource

    sae = _sae(bundle, settings)
    source = ArraySource(sae, activations, any_source=settings["any_source"], licence=settings["licence"])
    return source, sae.manifest


def _sae(bundle: str, settings: Mapping[str, Any]) -> "SAE":
    from sae_runtime.bundle.hub import local
    from sae_runtime.sae import load

    folder = common.own_bundle(local(bundle), ", which reads --text; for --activations")
    return load(folder, graph=settings["graph"], **settings["session"])


def _delphi(
    bundle: str,
    activations: Path | None,
    output: Path,
    run: Run,
    rule: Any,
    values: Any,
    sequence: int,
    settings: Mapping[str, Any],
) -> None:
    from sae_runtime.activations.stored import open_activations
    from sae_runtime.extraction.delphi import output as cache_folder
    from sae_runtime.extraction.delphi_cache import cache

    assert activations is not None  # the format goes with them
    cache_folder(output, force=run.force, inputs={"bundle": Path(bundle), "activations": activations}).check()
    rows = open_activations(activations)
    sae = _sae(bundle, settings)
    made = cache(
        sae,
        rows,
        output,
        rule=rule,
        values=values,
        sequence=sequence,
        any_source=settings["any_source"],
        **run.options,
    )
    l0 = made.matches / made.tokens if made.tokens else 0.0
    _warn(sae.manifest, activations, made.tokens, l0)
    tokens, matches = common.plural(made.tokens, "token"), common.plural(made.matches, "match")
    lines = [
        ("features", output),
        ("rows", f"{tokens}, {matches} ({l0:.4g} a token)"),
        ("size", f"{made.size:,} bytes"),
    ]
    if made.tokens < len(rows):
        left = common.plural(len(rows) - made.tokens, "token")
        lines.append(("left out", f"{left}, which do not fill a sequence"))
    run.show({"features": output, **dataclasses.asdict(made)}, lines)


def _warn(manifest: "Manifest", activations: Path, tokens: int, l0: float) -> None:
    from sae_runtime.bundle.plausible import warn_of_other_rows

    warn_of_other_rows(manifest, activations, tokens=tokens, l0=l0)
