"""sae-runtime browse."""

import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.common import Run
from sae_runtime.cli.options import WHOLE, Command

_TOLD = ("name", "kind", "problem", "bytes", "weights", "agreement")  # of model.json


@click.command("browse", cls=Command, example="sae-runtime browse store model -o site --open")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@common.output("folder of the site", default=None)
@click.option(
    "--sae",
    "saes",
    metavar="BUNDLE",
    multiple=True,
    help="bundle of a store's SAE, for what it was fitted to and what it explains; the model's are known",
)
@click.option("--title", help="title of the site [the host model's name]")
@click.option("--top", type=WHOLE, help="contexts of a feature's top band [20; fewer of many features]")
@click.option("--per-band", type=WHOLE, help="contexts of each other band [5; fewer of many features]")
@click.option("--int8", is_flag=True, help="put the model in with weights of eight bits, which are a quarter to load")
@click.option("--in-page", is_flag=True, help="put the model in although it has more than 500 MB to load")
@click.option("--open", "opened", is_flag=True, help="serve the site on 127.0.0.1 and open it in the web browser")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="port of --open; 0: one that is free")
@common.running("force", "quiet", "json")
def command(
    paths: tuple[str, ...],
    output: Path | None,
    saes: tuple[str, ...],
    int8: bool,
    in_page: bool,
    opened: bool,
    port: int,
    run: Run,
    **settings: Any,
) -> None:
    """Write a site to look at features in a web browser, or open one.

    A PATH is a feature store, which `features build` writes, one for each SAE, or a deployed model, of which one may
    be named: its copy then runs in the page, where typed text shows its features and edits move its output. The site
    is static: any web server can give out its folder, and no file of it asks another address. A browser opens no such
    page from the disk: look at it with --open, also later, by `sae-runtime browse SITE --open`; Ctrl-C ends that. Or
    let `sae-runtime serve MODEL --site SITE` run the model.
    """
    from sae_runtime.browser.site.inputs import is_site

    if output is None:
        if len(paths) == 1 and is_site(paths[0]) and opened:
            _serve(Path(paths[0]), port)
            return
        if not opened:
            raise click.UsageError("Missing option '-o' / '--output'; or open a site: sae-runtime browse SITE --open")
        raise click.UsageError("--open without -o opens one site; name its folder, or name the folder to write by -o.")
    _write(paths, output, saes, int8=int8, in_page=in_page, run=run, **settings)
    if opened:
        _serve(output, port)


def _write(
    paths: tuple[str, ...], output: Path, saes: tuple[str, ...], *, int8: bool, in_page: bool, run: Run, **settings: Any
) -> None:
    from sae_runtime.browser.site.inputs import sorted_out
    from sae_runtime.browser.site.write_site import site_output, write_site
    from sae_runtime.bundle.hub import local

    site_output(output, force=run.force).check()
    inputs = sorted_out(paths)
    if inputs.model is None and (int8 or in_page):
        raise click.UsageError("--int8 and --in-page are about a model; name one.")
    model, write_graph = (None, None) if inputs.model is None else _model(inputs.model)
    made = write_site(
        inputs.stores,
        output,
        model=model,
        write_graph=write_graph,
        saes=[common.own_bundle(local(sae)) for sae in saes],
        int8=int8,
        large=in_page,
        **settings,
        **run.options,
    )
    top, per_band = made.per_band
    lines = [
        ("site", output),
        ("features", f"{made.features:,} of {', '.join(made.saes)}"),
        ("contexts", f"{top} of a feature's top band and {per_band} of each other one at most"),
        *([] if made.model is None else [("model", _of_model(made.model))]),
        ("size", f"{made.size:,} bytes; the largest file of features has {made.largest:,}"),
        *(("note" if number == 0 else "", note) for number, note in enumerate(made.notes)),
        ("open it", common.shell_command("browse", output, "--open")),
    ]
    told = None if made.model is None else {name: made.model[name] for name in _TOLD}
    run.show({"site": output, **asdict(made), "model": told}, lines)


def _model(path: str) -> tuple[Any, Any]:
    """The model of a path, and what writes its graph for a page."""
    from sae_runtime.bundle.extras import require

    require("browse")
    from sae_runtime.exports.page_graph import write_page_graph
    from sae_runtime.model import load_model

    return load_model(path), write_page_graph


def _of_model(told: Any) -> str:
    if told["problem"] is not None:
        return f"{told['name']}, not in the page"
    return f"{told['name']}, {told['bytes']:,} bytes to load, {told['weights']}"


def _serve(folder: Path, port: int) -> None:
    """Serve a site until Ctrl-C."""
    from sae_runtime.browser.site.site_server import address_of, show, site_server

    with site_server(folder, port) as server:
        address = address_of(server)
        click.echo(f"the site is at {address} (Ctrl-C ends it)")

        def look() -> None:
            if not show(address):
                click.echo("no web browser opens here; open the address in one")

        threading.Thread(target=look, daemon=True).start()  # some browsers end first, and need an answer until then
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("")
