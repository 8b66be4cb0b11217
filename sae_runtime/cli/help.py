"""sae-runtime help."""

import click

from sae_runtime.cli.options import Command


@click.command("help", cls=Command, example="sae-runtime help train")
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of a command.

    Without a name, it shows the help that lists all commands. A command of a group takes two names: features show.
    """
    shown = ctx.find_root()
    for name in names:
        if not isinstance(shown.command, click.Group):
            raise click.UsageError(f"{shown.command_path} has no commands of its own; leave out {name!r}.")
        _, named, _ = shown.command.resolve_command(shown, [name])
        if named is not None:
            shown = click.Context(named, info_name=name, parent=shown)
    click.echo(shown.get_help())
