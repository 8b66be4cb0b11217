"""sae-runtime demo."""

from pathlib import Path

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import Command
from sae_runtime.core.printable import printable


@click.command("demo", cls=Command, example="sae-runtime demo -o demo-out")
@common.output("folder to make", default=Path("demo-out"))
@common.running("force")
def command(output: Path, run: Run) -> None:
    """Do all of it on a small real model.

    Reads a sentence with the ready SAE and steers it by a label. Then harvests, trains, exports, extracts and steers,
    and writes a site of all features, into one folder.
    """
    from sae_runtime.bundle.extras import require
    from sae_runtime.bundle.files import check_free

    require("demo")
    check_free(output, force=run.force, kind="folder", foreign=lambda _: None)  # the demo knows what is its own
    from sae_runtime import demo  # torch and a model: after the check that the extra is installed

    demo.run(output, force=run.force)
    click.echo(printable(output))
