"""sae-runtime help."""

import click

from sae_runtime.cli.options import Command


@click.command("help", cls=Command, example="sae-runtime help train")
@click.argument("name", metavar="[COMMAND]", required=False)
@click.pass_context
def command(ctx: click.Context, name: str | None) -> None:
    """Show the help of a command.

    Without a name, it shows the help that lists all commands.
    """
    above = ctx.find_root()
    if name is not None and isinstance(above.command, click.Group):
        _, named, _ = above.command.resolve_command(above, [name])
        if named is not None:
            above = click.Context(named, info_name=name, parent=above)
    click.echo(above.get_help())
