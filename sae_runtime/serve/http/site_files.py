"""What `sae-runtime browse` wrote, at `/site/` of the server, so that its pages may ask the models there."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from sae_runtime.bundle.typed_json import read_file
from sae_runtime.core.content_types import content_type
from sae_runtime.serve import json_text

HOME = "/site/"
"""Where the site stands. What it says is in its files, so its paths need no key; its page asks for one itself."""

FORMAT = 1
"""The format of sites that this server knows."""

_HEADERS = {
    # As the site's own page asks in its meta tag, and no other page may frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a browser asks whether a file is still the same, and gets no body if it is
}


@dataclass(frozen=True)
class _Said:
    """What the server reads of site.json."""

    format: int


def check_site(folder: Path) -> Path:
    """The folder of a site, made absolute.

    Raises:
        ValueError: the folder is no site, or one of another format.

    >>> check_site(Path(store_path))
    Traceback (most recent call last):
    ValueError: ... is no site: it has no site.json and index.html; write one: sae-runtime browse STORE MODEL -o site
    """
    if not ((folder / "site.json").is_file() and (folder / "index.html").is_file()):
        write = "write one: sae-runtime browse STORE MODEL -o site"
        raise ValueError(f"{folder} is no site: it has no site.json and index.html; {write}")
    said = read_file(_Said, folder / "site.json", more=True, foreign=True)
    if said.format != FORMAT:
        raise ValueError(
            f"{folder} is a site of format {said.format}, and format {FORMAT} is known here; write it again"
        )
    return folder.resolve()


def routes(folder: Path) -> list[Route]:
    """The files of a site, and `serve.json`, which tells its page that a server is here.

    Args:
        folder: as `check_site` gives it.

    >>> [route.path for route in routes(Path("site"))]
    ['/site', '/site/serve.json', '/site/{path:path}']
    """
    files = _Files(directory=folder, check_dir=False)

    async def home(request: Request) -> Response:
        return RedirectResponse("site/", 308, headers=_HEADERS)  # of this address, whatever a proxy puts before it

    async def server(request: Request) -> Response:
        return JSONResponse({"api": "/", "models": "/page/models"}, headers=_HEADERS)

    async def file(request: Request) -> Response:
        path = request.path_params["path"] or "index.html"
        try:
            return await files.get_response(path, request.scope)
        except (HTTPException, OSError, ValueError):
            text = {"error": "the site has no such file; see /site/"}
            return Response(json_text.to_bytes(text), 404, {**_HEADERS, "Content-Type": "application/json"})

    return [
        Route(HOME.rstrip("/"), home, methods=["GET"]),
        Route(f"{HOME}serve.json", server, methods=["GET"]),
        Route(HOME + "{path:path}", file, methods=["GET"]),
    ]


def is_open(path: str) -> bool:
    """Whether a path is one of the site's.

    >>> is_open("/site/index.html"), is_open("/sites")
    (True, False)
    """
    return path == HOME.rstrip("/") or path.startswith(HOME)


class _Files(StaticFiles):
    """Regular files of one folder. Starlette follows no link out of it; hidden files are none of a site's."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        if re.search(r"(^|[/\\])\.|[\\:\0]", path):
            return "", None
        return super().lookup_path(path)

    def file_response(self, *given: object, **options: object) -> Response:
        response = super().file_response(*given, **options)  # type: ignore[arg-type]  # as Starlette calls it
        response.headers.update(_HEADERS)
        if response.status_code != 304:
            response.headers["Content-Type"] = content_type(str(given[0]))
        return response
