"""A static host on 127.0.0.1 for tests: a plain file server that can be strange, slow or broken where a test asks.

Everything that was asked of it is in `Host.asked`.
"""

import contextlib
import http.server
import mimetypes
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What every static host knows; a host that is `plain` sends no charset, and octet-stream for all but pages and scripts.
KNOWN = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
PLAIN = {".html": "text/html", ".js": "application/javascript", ".css": "text/css"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the host says instead of a file."""

    status: int = 200
    body: bytes | None = None  # None: the file's bytes
    cut: int | None = None  # send this many bytes of the body, announce all, and close
    wait: threading.Event | None = None  # answer when it is set
    type: str | None = None


@dataclass(kw_only=True)
class Host:
    """A running host."""

    folder: Path
    address: str  # of the folder, with a slash at its end
    prefix: str
    plain: bool
    answers: dict[str, Answer] = field(default_factory=dict)  # by path below the folder, as "data/sae/overview.json"
    asked: list[str] = field(default_factory=list)


class _Server(http.server.ThreadingHTTPServer):
    """Connections that the browser cuts are no news."""

    daemon_threads = True
    host: Host

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        host = self.server.host
        asked = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        host.asked.append(self.path)
        path = asked.removeprefix(host.prefix) if asked.startswith(host.prefix) else None
        if path is not None and (path == "" or path.endswith("/")):
            path += "index.html"
        file = None if path is None else (host.folder / path).resolve()
        answer = host.answers.get(path or "", Answer())
        if answer.wait is not None:
            answer.wait.wait(60)
        body = answer.body
        if body is None and file is not None and file.is_file() and file.is_relative_to(host.folder.resolve()):
            body = file.read_bytes()
        status = 404 if body is None and answer.status == 200 else answer.status
        body = b"no such file" if body is None else body
        self.send_response(status)
        self.send_header("Content-Type", answer.type or self._type(path or ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def _type(self, path: str) -> str:
        suffix = Path(path).suffix
        if self.server.host.plain:
            return PLAIN.get(suffix, "application/octet-stream")
        return KNOWN.get(suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def hosted(folder: Path, prefix: str = "/", *, plain: bool = False) -> Iterator[Host]:
    """Serve a folder on a free port of 127.0.0.1, below a prefix as "/x/y/site/"."""
    server = _Server(("127.0.0.1", 0), _Handler)
    address = f"http://127.0.0.1:{server.server_port}{prefix}"
    server.host = Host(folder=folder, address=address, prefix=prefix, plain=plain)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
