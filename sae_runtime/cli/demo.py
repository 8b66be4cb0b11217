"""sae-runtime demo."""

from pathlib import Path

import click

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.files import check_free
from sae_runtime.cli.common import force_option, output_option
from sae_runtime.cli.options import Command


@click.command("demo", cls=Command)
@output_option("folder to make", default=Path("demo-out"))
@force_option
def command(output: Path, force: bool) -> None:
    """Do all of it on a small real model.

    Harvests, trains, exports, extracts, steers and reports, into one folder.
    """
    require("demo")
    check_free(output, force=force)
    from sae_runtime import demo  # torch and a model: only once the extra is known to be there

    demo.run(output, force=force)
    click.echo(output)
