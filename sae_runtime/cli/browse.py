"""sae-runtime browse."""

from dataclasses import asdict
from pathlib import Path

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command


@click.command("browse", cls=Command, example="sae-runtime browse store model -o site --open")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@common.output("folder of the site")
@click.option("--title", help="title of the site [the name of the model]")
@click.option("--top", type=WHOLE, default=20, help="contexts of a feature's top band")
@click.option("--per-band", type=WHOLE, default=5, help="contexts of each other band")
@common.running("force", "quiet", "json")
def command(paths: tuple[str, ...], output: Path, title: str | None, top: int, per_band: int, run: Run) -> None:
    """Write a site to look at features in a web browser, or open one.

    A PATH is a feature store, which `features build` writes, or a deployed model.
    """
    from sae_runtime.browser.site.write_site import write_site

    made = write_site(list(paths), output, title=title, top=top, per_band=per_band, **run.options)
    lines = [
        ("site", output),
        ("features", f"{made.features:,} of {', '.join(made.saes)}"),
        ("size", f"{made.size:,} bytes, the largest file {made.largest:,}"),
    ]
    run.show({"site": output, **asdict(made)}, lines)
