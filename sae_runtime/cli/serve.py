"""sae-runtime serve."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sae_runtime.cli import common
from sae_runtime.cli.options import WHOLE, Command, from_config
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.policy import Policy

if TYPE_CHECKING:
    from sae_runtime.serve.catalogue import Loaded


@click.command("serve", cls=Command, example="sae-runtime serve sae chat=model --port 8080")
@click.argument("paths", metavar="[NAME[@VERSION]=]PATH...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", help="address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="port; 0: one that is free")
@click.option("--api-key-file", type=common.PATH, help="file of keys, one on a line; callers must send one")
@click.option("--site", type=common.PATH, help="site that `browse` wrote, served at /site/; its files need no key")
@click.option(
    "--provider", default="auto", help="execution provider of onnxruntime; auto: CUDA where it starts, else cpu"
)
@click.option("--threads", type=WHOLE, help="threads of an operator [all cores]")
@click.option("--access-log/--no-access-log", default=True, help="a line on stderr for each request, without contents")
@from_config(Limits, "limits", prefix="max_")
@from_config(Policy, "policy")
def command(
    paths: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    site: Path | None,
    provider: str,
    threads: int | None,
    access_log: bool,
    limits: Limits,
    policy: Policy,
) -> None:
    """Serve bundles and deployed models to many callers, by HTTP.

    A PATH is a bundle or what `splice` leaves. It is served under the name of its folder, or under NAME. Callers use
    the Open Inference Protocol at /v2, OpenAI's at /v1, or the page at /. With --site, what `browse` wrote stands at
    /site/, and its pages ask the models here: everybody who reaches the server may read it, and keys guard the models
    alone. SIGTERM ends the server when it has answered what it accepted.
    """
    from sae_runtime.bundle.extras import require

    require("serve")
    from sae_runtime.serve.catalogue import open_all
    from sae_runtime.serve.guarding import Guards
    from sae_runtime.serve.http.app import App
    from sae_runtime.serve.http.keys import is_loopback, read_keys
    from sae_runtime.serve.http.server import Server, hosts_of, listen
    from sae_runtime.serve.http.site_files import HOME, check_site
    from sae_runtime.serve.live import Live
    from sae_runtime.serve.plane import Plane

    keys = read_keys(api_key_file) if api_key_file is not None else ()
    folder = None if site is None else check_site(site)
    socket = listen(host, port)
    with contextlib.closing(socket):
        loaded = open_all(paths, providers=_providers(provider), threads=threads, tell=_tell)
        plane = Plane(loaded, limits=limits, policy=Guards(policy, loaded), watcher=Live(loaded))
        if not keys and not is_loopback(host):
            common.warn(f"everybody who reaches {host} may ask; give --api-key-file, or listen on 127.0.0.1")
        address = socket.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]

        def started() -> None:
            click.echo(f"serving on http://{shown}:{address[1]}")
            if folder is not None:
                click.echo(f"the site is at http://{shown}:{address[1]}{HOME}")

        log = sys.stderr if access_log else None
        served = App(plane, keys=keys, hosts=hosts_of(host, keys), log=log, site=folder)
        Server(served, started=started).run([socket])


def _tell(loaded: "Loaded") -> None:
    from sae_runtime.core.printable import printable

    model = loaded.model
    held = (
        "bundle"
        if model is None
        else {"vectors": "model of vectors", "text": "language model"}.get(model.kind, "model")
    )
    saes = ", ".join(f"{sae.d_sae:,} features" for sae in loaded.saes.values())
    click.echo(printable(f"loaded {loaded}: {held}, {saes or 'no SAE'}"))
    if model is not None and model.kind == "vectors":
        try:
            model.embed("a trial")
        except ValueError as error:
            common.warn(f"{loaded} answers no request for vectors: {error}")


def _providers(name: str) -> Any:
    """The providers that a name means; CUDA where it starts, for "auto"."""
    if name != "auto":
        return common.providers_of([name])
    import onnxruntime

    from sae_runtime.engine.doctor import cuda_starts
    from sae_runtime.engine.sessions import CPU, CUDA

    if CUDA not in onnxruntime.get_available_providers():
        return CPU
    if not cuda_starts():
        common.warn("CUDA does not start here, so the CPU is used; sae-runtime doctor says why")
        return CPU
    return (CUDA, *CPU)
