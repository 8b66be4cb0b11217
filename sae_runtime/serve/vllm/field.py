"""Our field `sae` before vLLM's own API server: `--middleware sae_runtime.serve.vllm.field.SaeField`.

vLLM calls a middleware of its command line before it asks for its API key. So nothing is read or answered here before
vLLM's own route reads the body: then the key was right.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sae_runtime.serve.errors import Full, NotFound, Refused
from sae_runtime.serve.vllm.field_answer import ChoiceTokens, Stream, error_object, whole
from sae_runtime.serve.vllm.field_body import ANSWERED, Wanted, read_body
from sae_runtime.serve.vllm.field_engine import FieldEngine

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Any, Receive, Send], Awaitable[None]]


class SaeField:
    """The middleware.

    Args:
        app: what it stands before.
    """

    def __init__(self, app: ASGI) -> None:
        self._app = app
        self._engine: FieldEngine | None = None
        self._routed = False
        self._dropping = set[asyncio.Task[None]]()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request as vLLM does, with what its `sae` asks."""
        if not self._routed and "app" in scope:
            self._routed = True
            scope["app"].router.routes.insert(0, Route("/v1/sae", self._status, methods=["GET"]))
        if scope["type"] != "http" or scope["method"] != "POST" or not _is_json(scope):
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in ANSWERED:  # an answer that a middleware packed could not be read
            scope["headers"] = [one for one in scope["headers"] if one[0].lower() != b"accept-encoding"]
        exchange = _Exchange(self._engine_of(scope["app"]), path, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except _Refusal as error:  # another middleware read the body
            await _error(error.detail, 400)(scope, receive, send)
        finally:
            if exchange.wanted is not None and not exchange.taken:
                self._drop(exchange.engine, exchange.wanted)

    def _engine_of(self, app: Any) -> FieldEngine:
        if self._engine is None:
            self._engine = FieldEngine(getattr(app.state, "engine_client", None))
        return self._engine

    def _drop(self, engine: FieldEngine, wanted: Wanted) -> None:
        """Let the engine forget features that nobody reads; the request may be cancelled already."""

        async def drop() -> None:
            try:
                await engine.drop(wanted)
            except Refused:  # the engine has ended, and its features with it
                pass

        task = asyncio.ensure_future(drop())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def _status(self, request: Request) -> Response:
        """Answer GET /v1/sae: what is loaded."""
        try:
            status = await self._engine_of(request.app).status()
        except NotFound as error:
            return _error(str(error), 404)
        except Refused as error:
            return _error(str(error), 503)
        return JSONResponse({"object": "list", "data": [{"name": name, **one} for name, one in status.items()]})


class _Refusal(HTTPException):
    """Ends the reading of a body: other exceptions are told as a body that cannot be parsed."""


class _Exchange:
    """A request and its answer on their ways through the middleware.

    Args:
        engine: that answers.
        path: of the route.
        receive: of ASGI.
        send: of ASGI.

    Attributes:
        wanted: features that the answer is to carry.
        taken: whether the engine gave them.
    """

    def __init__(self, engine: FieldEngine, path: str, receive: Receive, send: Send) -> None:
        self.engine, self._path, self._receive, self._send = engine, path, receive, send
        self.wanted: Wanted | None = None
        self.taken, self._read = False, False
        self._refused = ""
        self._start: Message | None = None
        self._body = bytearray()
        self._stream: Stream | None = None

    async def receive(self) -> Message:
        """The body of the request in one message; then what comes."""
        if self._read:
            return await self._receive()
        self._read = True
        parts, more = [], True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        try:
            body, self.wanted = read_body(self._path, body, self.engine.check)
        except (ValueError, MemoryError) as error:
            self._refused = str(error) or "the request needs too much memory; send a smaller one"
            raise _Refusal(400, self._refused) from None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Send what vLLM sends, with features if they are wanted."""
        if self.wanted is None and not self._refused:
            await self._send(message)
        elif message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and self._stream is not None:
            await self._send({**message, "body": await self._stream.push(message.get("body", b""))})
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._end(self._start)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kind = dict(message["headers"]).get(b"content-type", b"") if message["status"] == 200 else b""
        if kind.startswith(b"application/json") or self._refused:
            self._start = message
            return
        if kind.startswith(b"text/event-stream"):
            assert self.wanted is not None
            self._stream = Stream(self._features, show_ids=self.wanted.ids)
        await self._send(message)

    async def _end(self, start: Message) -> None:
        """Send a whole answer, or in its place a refusal in vLLM's own form of errors."""
        body, status = bytes(self._body), start["status"]
        if self._refused:
            body, status = json.dumps(error_object(self._refused, 400)).encode(), 400
        elif self.wanted is not None:
            try:
                body = await whole(body, self._features, show_ids=self.wanted.ids)
            except Full as error:
                body, status = json.dumps(error_object(str(error), 503)).encode(), 503
            except (KeyError, TypeError, ValueError):  # an answer of another form, such as none to a client that left
                pass
        own = {b"content-length": str(len(body)).encode(), b"content-type": b"application/json"}
        headers = [*(one for one in start["headers"] if one[0].lower() not in own), *own.items()]
        await self._send({**start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _features(self, choices: Sequence[ChoiceTokens]) -> list[list[dict[str, Any]]]:
        assert self.wanted is not None
        found = await self.engine.features(self.wanted, choices)
        self.taken = True
        return found


def _error(message: str, code: int) -> Response:
    return JSONResponse(error_object(message, code), code)


def _is_json(scope: Any) -> bool:
    """Whether a body may be JSON: it is called so, or not called anything."""
    kind = dict(scope["headers"]).get(b"content-type", b"json")
    return b"json" in kind.lower()
