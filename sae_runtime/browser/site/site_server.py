"""A site on this computer's own address, for the person who made it: `sae-runtime browse --open`."""

import functools
import os
import re
import sys
import urllib.parse
import webbrowser
from collections.abc import Callable
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from sae_runtime.bundle.regular import open_regular
from sae_runtime.core.content_types import content_type

_HEADERS = {
    "Cache-Control": "no-cache",  # a browser asks whether a file is still the same, and gets no body if it is
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_CHUNK = 1 << 16  # bytes
_SECONDS = 60  # that a connection may be silent


def site_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a site on 127.0.0.1, whose `serve_forever` the caller runs.

    Args:
        folder: of the site.
        port: to listen on; 0: one that is free.

    Raises:
        OSError: another program listens on the port.

    >>> with site_server(Path(store_path)) as server:
    ...     server.server_address[0]
    '127.0.0.1'
    """
    return _Server(("127.0.0.1", port), functools.partial(_Handler, folder.resolve()))


def address_of(server: ThreadingHTTPServer) -> str:
    """The address of a server's site."""
    return f"http://127.0.0.1:{server.server_address[1]}/"


def show(address: str) -> bool:
    """Open an address in the web browser; False where there is none, or only one that needs the terminal."""
    has_screen = sys.platform in ("win32", "darwin") or any(
        map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    )
    try:
        return has_screen and webbrowser.open(address)
    except webbrowser.Error:
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # Ctrl-C waits for no browser that keeps its connection
    allow_reuse_address = os.name == "posix"  # Windows would let two programs listen on one port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error, unless the page was closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the regular files of one folder."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sae-runtime", ""
    timeout = _SECONDS

    def __init__(self, folder: Path, *given: Any) -> None:
        self._folder = folder
        super().__init__(*given)

    def do_GET(self) -> None:  # noqa: N802  # http.server's names
        """Answer with a file."""
        self._answer(self._send)

    def do_HEAD(self) -> None:  # noqa: N802
        """Answer with the headers of a file."""
        self._answer(lambda file: None)

    def log_message(self, *_: object) -> None:
        """Say nothing: the reader of the site is its only visitor."""

    def _answer(self, send: Callable[[BinaryIO], None]) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # the body of this request would be taken for the next one
        if not self._is_own():
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers its own address alone")
        elif (path := self._path()) is None:
            self._refuse(HTTPStatus.NOT_FOUND, "the site has no such file")
        else:
            self._send_file(path, send)

    def _is_own(self) -> bool:
        """Whether the page asked for this address, and no page of another name that leads here."""
        host = self.headers.get("Host", "")
        return re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host) is not None

    def _path(self) -> Path | None:
        """The file of a request; None where the folder has no such regular file, or the path leads out of it."""
        try:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path, errors="strict")
        except ValueError:
            return None
        parts = path.removeprefix("/").split("/")
        if parts[-1] == "":
            parts[-1] = "index.html"
        # No part is empty, hidden or `..`, or has what a system takes for a drive, a stream or another separator.
        if any(re.match(r"\.|$", part) or re.search(r"[\\:\0]", part) for part in parts):
            return None
        file = self._folder.joinpath(*parts)
        try:
            real = file.resolve(strict=True)
        except (OSError, RuntimeError):  # it is missing, or a link to itself
            return None
        return real if real.is_relative_to(self._folder) and real.is_file() else None

    def _send_file(self, path: Path, send: Callable[[BinaryIO], None]) -> None:
        try:
            file = open_regular(path)
        except (OSError, ValueError):
            self._refuse(HTTPStatus.NOT_FOUND, "the site has no such file")
            return
        with file:
            told = os.fstat(file.fileno())
            # Sizes differ where two versions are of one second.
            tag = f'"{told.st_mtime_ns:x}-{told.st_size:x}"'
            same = self._knows(tag, int(told.st_mtime))
            self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("ETag", tag)
            self.send_header("Last-Modified", formatdate(told.st_mtime, usegmt=True))
            if not same:
                self.send_header("Content-Type", content_type(path))
                self.send_header("Content-Length", str(told.st_size))
            self.end_headers()
            if not same:
                send(file)

    def _knows(self, tag: str, modified: int) -> bool:
        """Whether the browser has this version of a file."""
        if (tags := self.headers.get("If-None-Match")) is not None:
            return tags.strip() == "*" or tag in [each.strip().removeprefix("W/") for each in tags.split(",")]
        try:
            return modified <= parsedate_to_datetime(self.headers["If-Modified-Since"]).timestamp()
        except (TypeError, ValueError, OverflowError):
            return False

    def _send(self, file: BinaryIO) -> None:
        while chunk := file.read(_CHUNK):
            self.wfile.write(chunk)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        body = f"{why}\n".encode()
        self.send_response(status)
        for name, value in {
            **_HEADERS,
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
