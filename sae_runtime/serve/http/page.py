"""The page for a person at `/`: what is loaded, a text and its features, a slider, and how to call the server."""

import math
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sae_runtime.bundle.parts import WEIGHTS
from sae_runtime.core.content_types import content_type
from sae_runtime.sae import SAE
from sae_runtime.serve.catalogue import Loaded
from sae_runtime.serve.plane import Plane

_HEADERS = {
    # Whatever a label or a text says, nothing but the server's own script runs and nothing is sent elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def routes(plane: Plane, *, site: bool = False) -> list[Route]:
    """The page, its styles and scripts, and `/page/models`, which says what is loaded.

    Args:
        plane: what is served.
        site: whether a site of the browser stands at /site/, so that the page links to it.

    >>> from sae_runtime.serve.catalogue import open_all
    >>> plane = Plane(open_all([f"mine={bundle_path}"]))
    >>> [route.path for route in routes(plane)]
    ['/', '/page/calls.js', ..., '/page/shared/look.css', ..., '/page/models']
    >>> plane.close()
    """
    found = [Route(path, _asset(path, content)) for path, content in _assets().items()]

    async def models(request: Request) -> Response:
        return JSONResponse({"models": described(plane), "site": site}, headers=_HEADERS)

    return [*found, Route("/page/models", models)]


def is_open(path: str) -> bool:
    """Whether a path says nothing of what is loaded, so that it needs no key; the page asks for the key itself.

    >>> is_open("/"), is_open("/page/page.js"), is_open("/page/models")
    (True, True, False)
    """
    return path in _assets()


def described(plane: Plane) -> list[dict[str, Any]]:
    """What is loaded, as values of JSON: names, operations, and each SAE with the figures of traffic and manifest.

    >>> from sae_runtime.serve.catalogue import open_all
    >>> plane = Plane(open_all([f"mine={bundle_path}"]))
    >>> described(plane)[0]["kind"], described(plane)[0]["saes"][0]["d_sae"]
    ('bundle', 150)
    >>> plane.close()
    """
    operations: dict[tuple[str, str], list[str]] = {}
    for one in plane.index():
        name, _, operation = one.name.rpartition(".")
        operations.setdefault((name, one.version), []).append(operation)
    return [
        {
            "name": one.name,
            "version": str(one.version),
            "kind": "bundle" if one.model is None else one.model.kind,
            "operations": operations.get((one.name, str(one.version)), []),
            "saes": [_sae(plane, one, name) for name in one.saes],
        }
        for one in plane.loaded
    ]


def _sae(plane: Plane, loaded: Loaded, name: str) -> dict[str, Any]:
    sae = loaded.saes[name]
    if isinstance(sae, SAE):
        d_in, hook, edits = sae.d_in, sae.manifest.hook, sae.manifest.architecture.d_out is None
        allocation = sae.manifest.allocation
        rule = None if allocation is None else f"{allocation.kind} choice, k {allocation.k:g}"
        weights = sae.manifest.files[WEIGHTS].sha256
    else:
        d_in, hook, edits, rule, weights = sae.spliced.d_in, sae.hook, sae.edits, None, sae.spliced.weights
    try:
        multiples, labels = sae.stats is not None, len(sae.labels)
    except (ValueError, OSError):  # the bundle of a spliced SAE need not be there
        multiples, labels = False, 0
    found: dict[str, Any] = {"name": name, "hook": hook, "rule": rule, "d_in": d_in, "d_sae": sae.d_sae, "edits": edits}
    found |= {"multiples": multiples, "labels": labels, "weights_sha256": weights}
    live = plane.watcher
    if live is not None:
        watched = live.saes[loaded.name, loaded.version, name]
        found |= {of: _finite(asdict(getattr(watched, of)())) for of in ("recent", "expected", "totals")}
    return found


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures that JSON can hold; a manifest may say anything."""
    return {
        name: value if isinstance(value, int | float) and math.isfinite(value) else None
        for name, value in figures.items()
    }


@cache
def _assets() -> dict[str, bytes]:
    """What each path of the page holds: its own files, and those that it shares with the browser's site."""
    own, shared = files(__package__).joinpath("assets"), files("sae_runtime.browser").joinpath("assets/shared")
    found = {f"/page/{file.name}": file.read_bytes() for file in own.iterdir()}
    found |= {f"/page/shared/{file.name}": file.read_bytes() for file in shared.iterdir()}
    return {"/": found.pop("/page/page.html"), **dict(sorted(found.items()))}


def _asset(path: str, content: bytes) -> Any:
    kind = content_type("page.html" if path == "/" else path)

    async def asset(request: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return asset
