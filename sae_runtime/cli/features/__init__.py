"""`sae-runtime features`: what the features of a deployed model do on text. Each command is a module of its name."""

import click

from sae_runtime.cli.group import Group

LINES = {
    "show": "Show the strongest features of every token of texts.",
    "find": "Find the features that tell two sets of texts apart.",
}


@click.command("features", cls=Group, groups={"Commands": LINES}, package="sae_runtime.cli.features")
def command() -> None:
    """Read the features of a deployed model on text.

    MODEL is what `sae-runtime splice` leaves: a folder, its graph or hf://owner/name[/folder][@revision]. It needs no
    torch: pip install 'sae-runtime[cpu,text]'.
    """
