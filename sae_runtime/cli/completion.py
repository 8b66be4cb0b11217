"""sae-runtime completion."""

import click
from click.shell_completion import get_completion_class

from sae_runtime.cli.options import Command


@click.command("completion", cls=Command, example='eval "$(sae-runtime completion bash)"    # in ~/.bashrc')
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands in a shell.

    The start file of the shell evaluates it; of fish, that is ~/.config/fish/completions/sae-runtime.fish.
    """
    complete = get_completion_class(shell)
    if complete is not None:
        click.echo(complete(ctx.find_root().command, {}, "sae-runtime", "_SAE_RUNTIME_COMPLETE").source())
