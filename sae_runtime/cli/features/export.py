"""sae-runtime features export."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sae_runtime.cli import common
from sae_runtime.cli.common import Run, plural
from sae_runtime.cli.options import WHOLE, Command


@click.command(
    "export", cls=Command, group="features", example="sae-runtime features export store --format neuronpedia -o pages"
)
@click.argument("store", metavar="STORE_OR_FEATURES")
@click.option("--format", "form", type=click.Choice(("neuronpedia", "delphi")), required=True, help="of the files")
@common.output("folder to write", default=None)
@click.option("--upload", is_flag=True, help="send the features to Neuronpedia, with the key in NEURONPEDIA_API_KEY")
@click.option("--model", help="Neuronpedia's name of the host model, such as gpt2-small [the store's]")
@click.option("--layer", type=WHOLE, help="number of the layer [the hook's]")
@click.option("--source-set", help="Neuronpedia's name of the set of SAEs, such as res-jb [the folder's]")
@click.option("--dataset", default="", help="name of the corpus that the pages show")
@click.option("--create", is_flag=True, help="make the source set before the upload")
@click.option("--start", type=WHOLE, default=0, help="feature from which an upload goes on")
@click.option("--url", help="API of an instance of your own, such as http://localhost:3000/api")
@click.option("--sequence", type=WHOLE, help="for delphi: tokens of a sequence [256]")
@click.option("--values", type=click.Choice(("float16", "float32")), help="for delphi: type of the values [float16]")
@common.running("force", "quiet", "json")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    store: str,
    form: str,
    output: Path | None,
    upload: bool,
    model: str | None,
    layer: int | None,
    source_set: str | None,
    dataset: str,
    create: bool,
    start: int,
    url: str | None,
    sequence: int | None,
    values: Any,
    run: Run,
) -> None:
    """Write a store as Neuronpedia's files, or features as delphi's.

    For Neuronpedia the folder has what SAEDashboard writes: batch-0.json and on, skipped_indexes.json and
    run_settings.json; and the labels in explanations.jsonl. --upload sends the features by Neuronpedia's client: pip
    install 'sae-runtime[neuronpedia]'. Its source is named LAYER-SOURCE_SET.

    delphi reads a folder that `extract` wrote as sequences of one length. The tokens after the last whole one are left
    out.
    """
    of_delphi, others = ("sequence", "values"), ("upload", "model", "layer", "source_set", "create", "start", "url")
    for name in others if form == "delphi" else of_delphi:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --format {form}.")
    if form == "delphi":
        _delphi(store, output, sequence, values, run)
        return
    from sae_runtime.store.neuronpedia_files import find_place, write_neuronpedia
    from sae_runtime.store.open_store import open_store

    if upload == (output is not None):
        raise click.UsageError("Give -o FOLDER to write files, or --upload to send the features.")
    if not upload and (create or start or url):
        raise click.UsageError("--create, --start and --url belong to --upload.")
    opened = open_store(store)
    place = find_place(opened, model, layer, source_set)
    if output is not None:
        done = write_neuronpedia(opened, output, place, dataset=dataset, **run.options)
        where = str(output)
    else:
        from sae_runtime.store import neuronpedia_upload

        done = neuronpedia_upload.upload(opened, place, create=create, start=start, url=url, progress=not run.quiet)
        where = f"{place.model}/{place.source}"
    never = sum(not count for count in opened.count)
    lines = [("written" if output else "sent", f"{plural(done, 'feature')} to {where}")]
    lines += [("left out", f"{plural(never, 'feature')} that no token activates")] * (never > 0)
    run.show({"features": done, "to": where, "model": place.model, "source": place.source, "never": never}, lines)


def _delphi(features: str, output: Path | None, sequence: int | None, values: Any, run: Run) -> None:
    """Write features of a folder as a latent cache of delphi."""
    from sae_runtime.extraction.delphi import SEQUENCE
    from sae_runtime.extraction.delphi_export import write_delphi
    from sae_runtime.extraction.stored_features import read_features

    if output is None:
        raise click.UsageError("Give -o FOLDER to write files.")
    stored = read_features(features)
    made = write_delphi(stored, output, values=values or "float16", sequence=sequence or SEQUENCE, **run.options)
    lines: list[tuple[str, object]] = [("written", f"{plural(made.matches, 'match')} to {output}")]
    lines.append(("size", f"{plural(made.tokens, 'token')}, {made.size:,} bytes"))
    if left := len(stored) - made.tokens:
        lines.append(("left out", f"{plural(left, 'token')}, which do not fill a sequence"))
    run.show({"to": output, "tokens": made.tokens, "matches": made.matches, "size": made.size}, lines)
