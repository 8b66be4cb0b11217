"""`sae-runtime features`: what features do, on text and over a corpus. Each command is a module of its name."""

import click

from sae_runtime.cli.group import Group

LINES = {
    "build": "Build a feature store: what each feature of a corpus does.",
    "show": "Show a feature of a store, or the features of each token of texts.",
    "search": "Find the features of a store that words are about.",
    "label": "Give features the labels of another tool's file.",
    "export": "Write a store as Neuronpedia's files, or features as delphi's.",
    "find": "Find the features that tell two sets of texts apart.",
}


@click.command("features", cls=Group, groups={"Commands": LINES}, package="sae_runtime.cli.features")
def command() -> None:
    """Read features: of a deployed model on text, or of a corpus.

    MODEL is what `sae-runtime splice` leaves: a folder, its graph or hf://owner/name[/folder][@revision]. STORE is the
    folder that `sae-runtime features build` makes. Neither needs torch: pip install 'sae-runtime[cpu,text,extract]'.
    """
