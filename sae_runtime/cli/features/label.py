"""sae-runtime features label."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common, texts
from sae_runtime.cli.common import Run, plural
from sae_runtime.cli.options import Command

if TYPE_CHECKING:
    from sae_runtime.labelling.importing import Imported


@click.command(
    "label", cls=Command, group="features", example="sae-runtime features label store --from batch-0.jsonl.gz"
)
@click.argument("target")
@click.option(
    "--from",
    "file",
    type=common.PATH,
    required=True,
    help="explanations of Neuronpedia (.jsonl, .json, .gz, or the folder of a source), a folder of delphi's, a table "
    "with the columns feature and label, or a labels.jsonl, also that of a store or bundle",
)
@click.option("--source", help="the SAE in the file, where it has several: Neuronpedia's source or delphi's module")
@click.option(
    "--replace",
    type=click.Choice(("nothing", "imported", "all")),
    default="nothing",
    help="labels that give way: none, those of earlier imports, or those that people gave too",
)
@click.option("--any-source", is_flag=True, help="take labels of another model, or of an SAE of another size")
@texts.sae
@common.running("json")
def command(
    target: str, file: Path, source: str | None, replace: Any, any_source: bool, sae: str | None, run: Run
) -> None:
    """Give features the labels of another tool's file.

    TARGET is a store, a bundle or a deployed model, whose labels.jsonl gets the labels. What a person gave stays, and
    so does what an earlier import gave, unless --replace says otherwise. Of several explanations of a feature the one
    with the highest score is taken, and without scores the first.
    """
    from sae_runtime.labelling.importing import import_labels
    from sae_runtime.labelling.target import find_target

    found = find_target(target, sae)
    done = import_labels(found, file, place=source, replace=replace, any_source=any_source)
    for warning in done.warnings:
        common.warn(warning)
    written = found.folder / "labels.jsonl"
    run.show({"labels": str(written)} | {"features": found.d_sae} | _as_json(done), _lines(done, found.d_sae, written))


def _as_json(done: "Imported") -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(done).items() if name != "labels"} | {
        "labelled": done.labels
    }


def _lines(done: "Imported", d_sae: int, path: Path) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [("written", f"{plural(done.written, 'label')} to {path}")]
    kept = [(done.given, "that people gave", "all"), (done.earlier, "of an earlier import", "imported")]
    for number, what, replace in kept:
        if number:
            lines.append(("kept", f"{plural(number, 'label')} {what}; --replace {replace} takes the new ones"))
    if done.several:
        chosen = "the one with the highest score, else the first"
        lines.append(("chosen", f"{chosen}, of {plural(done.several, 'feature')} with several explanations"))
    if done.shortened:
        lines.append(("shortened", f"{plural(done.shortened, 'label')} of more than 1,000 characters"))
    left = [(done.empty, "without a feature or a text"), (done.beyond, f"of features from {d_sae:,} on")]
    lines += [("left out", f"{number:,} {why}") for number, why in left if number]
    return [*lines, ("labels", f"{done.labels:,} of {plural(d_sae, 'feature')} have one")]
