"""The application: every route of the server over one plane, behind one door of keys and limits."""

import asyncio
import contextlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TextIO

from starlette.applications import Starlette
from starlette.routing import Route

from sae_runtime.core.printable import printable
from sae_runtime.serve import json_text
from sae_runtime.serve.errors import Full, Refused, TooLarge
from sae_runtime.serve.http import openai_routes, page, protocol, site_files
from sae_runtime.serve.http.bodies import Gone, Slow, pass_over, read_body
from sae_runtime.serve.http.keys import knows, stranger
from sae_runtime.serve.http.metrics import Metrics
from sae_runtime.serve.http.protocol import Answer
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.refusal import refusal

_HEALTH = ("/v2/health/live", "/v2/health/ready")
_WHOLE = ("content-length", "content-encoding", "transfer-encoding")
_PATIENCE = 2.0  # seconds that a body may take which is not used
_LEFT = Answer(499, b"")  # what nobody reads


class App:
    """The application of a server, for any ASGI server.

    Args:
        plane: what is served. The application closes it when its server ends.
        keys: of callers (`keys.read_keys`); without any, everybody may ask.
        hosts: names under which browsers may ask; None: any.
        log: gets a line for each request, without contents; None: nothing does.
        site: what `browse` wrote (`site_files.check_site`), which then stands at /site/; None: nothing does.

    Attributes:
        plane: what is served.
        leaving: whether the server is about to end: it is not ready, answers what still comes, and keeps no connection.
        metrics: what /metrics shows.

    >>> App(Plane.open([f"mine={bundle_path}"])).plane.close()
    """

    def __init__(
        self,
        plane: Plane,
        *,
        keys: Sequence[bytes] = (),
        hosts: Collection[str] | None = None,
        log: TextIO | None = None,
        site: Path | None = None,
    ) -> None:
        self.plane, self.leaving, self.metrics = plane, False, Metrics(plane)
        self._keys, self._hosts, self._log, self._held = tuple(keys), hosts, log, 0
        own = [*openai_routes.routes(plane), *page.routes(plane, site=site is not None)]
        own += [] if site is None else site_files.routes(site)
        self._has_site = site is not None
        self._routes = Starlette(routes=own, exception_handlers={405: openai_routes.wrong_method})
        self._known = [route for route in self._routes.routes if isinstance(route, Route)]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI asks."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        begun, sent = time.perf_counter(), [0, 0]

        async def count(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent[0] = message["status"]
                if self.leaving:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            else:
                sent[1] += len(message.get("body", b""))
            try:
                await send(message)
            except RuntimeError as error:  # garbage came behind the request, so uvicorn closed the connection
                if "closed" not in str(error):
                    raise
                raise Gone from None

        path: str = scope["path"]
        try:
            said = await self._answer(scope, receive, count)
        except Gone:
            said = _LEFT
        except Slow:
            text = "the request did not come in time; send all of it at once"
            said = _failed(path, 408, text, ((b"connection", b"close"),))
        except Refused as error:
            said = self._told(path, error)
        except Exception as error:  # a bug, or a fault of this machine: the caller learns that it may ask again
            told = refusal(error)
            said = None if sent[0] else self._told(path, told)
        if said is not None and said is not _LEFT:
            with contextlib.suppress(Gone):
                await _send(count, said)
        seconds, route = time.perf_counter() - begun, self._route(scope)
        self.metrics.http.finished(route, str(sent[0] or 499), seconds)
        if self._log is not None:
            words = (time.strftime("%H:%M:%S"), scope["method"], printable(path)[:200], str(sent[0] or 499))
            self._log.write(f"{' '.join(words)} {seconds * 1000:.1f} ms {sent[1]} bytes\n")

    async def _answer(self, scope: Any, receive: Any, send: Any) -> Answer | None:
        """The answer; None where a route has sent it."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path, method = scope["path"], scope["method"]
        if (
            self._keys
            and path not in _HEALTH
            and not page.is_open(path)
            and not (self._has_site and site_files.is_open(path))
            and not knows(self._keys, headers.get(b"authorization", b""))
        ):
            text = "the key is missing or wrong; send the header Authorization: Bearer KEY"
            return _failed(path, 401, text, ((b"www-authenticate", b'Bearer realm="sae-runtime"'),))
        if (why := stranger(headers, self._hosts)) is not None:
            return _failed(path, 403, why, ())
        body, held, limits, more = b"", 0, self.plane.limits, True

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > limits.waiting_bytes:
                raise Full(1.0, "too many bytes wait already")
            self._held, held = self._held + size, held + size

        async def part() -> Any:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        try:
            if b"content-length" in headers or b"transfer-encoding" in headers:
                try:
                    body = await read_body(part, headers, limits.body, limits.seconds, hold)
                except (TooLarge, Full):
                    if more:
                        await pass_over(receive, 4 * limits.body, _PATIENCE)
                    raise
            if path == "/v2" or path.startswith("/v2/"):
                return await protocol.answer(self.plane, method, path, headers, body, receive, self.leaving)
            if path == "/metrics" and method == "GET":
                return Answer(200, self.metrics.text(), self.metrics.content_type.encode())
            if self._route(scope) == "other":
                return _failed(path, 404, "there is no such route; see / for a page, /v2 and /v1/models", ())
            inner = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in _WHOLE]
            await self._routes({**scope, "headers": inner}, _replayed(body, receive), send)
            return None
        finally:
            self._held -= held

    def _told(self, path: str, error: Refused) -> Answer:
        said = protocol.refused(error)
        if path.startswith("/v1/"):
            said = said._replace(body=json_text.to_bytes(openai_routes.error_object(error)))
        if isinstance(error, TooLarge):  # the rest of the body is not read
            said = said._replace(headers=(*said.headers, (b"connection", b"close")))
        return said

    def _route(self, scope: Any) -> str:
        """The form of a path, for the metrics; "other" where it has none."""
        path: str = scope["path"]
        if path.startswith("/v2"):
            return "/v2/infer" if path.endswith("/infer") else "/v2"
        if path == "/metrics":
            return path
        return next((one.path for one in self._known if one.path_regex.match(path)), "other")

    async def _live(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await asyncio.to_thread(self.plane.close, self.plane.limits.seconds)
                await send({"type": "lifespan.shutdown.complete"})
                return


def _failed(path: str, status: int, text: str, headers: tuple[tuple[bytes, bytes], ...]) -> Answer:
    if path.startswith("/v1/"):
        told: Any = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    else:
        told = text
    return Answer(status, json_text.to_bytes({"error": told}), headers=headers)


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body that was read, and then what the client does."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay


async def _send(send: Any, said: Answer) -> None:
    headers = [(b"content-type", said.kind), (b"content-length", str(len(said.body)).encode()), *said.headers]
    await send({"type": "http.response.start", "status": said.status, "headers": headers})
    await send({"type": "http.response.body", "body": said.body})
