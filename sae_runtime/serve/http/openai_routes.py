"""The routes of OpenAI's protocol: models, embeddings, completions and chats; and the features of texts."""

import asyncio
import base64
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sae_runtime.core.labels import shown
from sae_runtime.deployed.text_features import TextFeatures
from sae_runtime.serve.catalogue import Loaded
from sae_runtime.serve.errors import Full, Invalid, NotFound, Refused
from sae_runtime.serve.http.bodies import Gone
from sae_runtime.serve.http.openai_answers import AnswerObjects, Answers, event, token_objects
from sae_runtime.serve.http.openai_request import (
    BadField,
    read_chat,
    read_completion,
    read_model,
    read_sae,
    read_texts,
)
from sae_runtime.serve.http.protocol import accepted, left, status_of, unless_gone
from sae_runtime.serve.json_text import read_object
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.refusal import refusal
from sae_runtime.serve.token_objects import TokenObjects

_FEATURES = 5  # of a token, where a caller of /v1/features names no number
_LEFT = 499  # what nobody reads

Handler = Callable[[Request], Awaitable[Response]]


def routes(plane: Plane) -> list[Route]:
    """The routes over a plane."""
    begun = int(time.time())

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(*one, begun) for one in _named(plane)]})

    async def model(request: Request) -> Response:
        asked = read_model({"model": request.path_params["name"]})
        loaded = plane.find(asked.name, asked.version)
        if loaded.model is None:
            raise NotFound(f"{loaded} is a bundle; ask for it by /v2/models/{loaded.name}.encode")
        return JSONResponse(_model(asked.text, loaded, begun))

    async def embeddings(request: Request) -> Response:
        given = read_object(await request.body())
        asked, texts, sae = read_model(given), read_texts(given, "input", plane.limits), read_sae(given, plane.limits)
        form, width = given.get("encoding_format") or "float", given.get("dimensions")
        if form not in ("float", "base64"):
            raise BadField("encoding_format", "encoding_format is float or base64; give one of them")
        ask = functools.partial(plane.embed, asked.name, texts, sae.edits, sae.gate, version=asked.version)
        future = await accepted(ask, sum(map(len, texts)))
        vectors = _of_width(await unless_gone(future, request.receive, plane.limits.seconds), width)
        data = [
            {"object": "embedding", "index": number, "embedding": _coded(vector, form)}
            for number, vector in enumerate(vectors)
        ]
        tokens = await asyncio.to_thread(_read_tokens, plane.find(asked.name, asked.version), texts)
        return _listed(data, asked.text, tokens)

    async def features(request: Request) -> Response:
        given = read_object(await request.body())
        asked, texts = read_model(given), read_texts(given, "input", plane.limits)
        most = read_sae({"sae": {"features": given.get("features", _FEATURES)}}, plane.limits).features
        ask = functools.partial(plane.features, asked.name, texts, version=asked.version)
        future = await accepted(ask, sum(map(len, texts)))
        seen = await unless_gone(future, request.receive, plane.limits.seconds)
        loaded = plane.find(asked.name, asked.version)
        assert loaded.model is not None
        shown = token_objects(loaded.model, most)
        data = [
            {"object": "features", "index": number, "tokens": _tokens(one, shown)} for number, one in enumerate(seen)
        ]
        return _listed(data, asked.text, sum(map(len, seen)))

    def writer(read: Callable[..., Any], *, chat: bool) -> Handler:
        async def written(request: Request) -> Response:
            ask = read(read_object(await request.body()), plane.limits)
            answers = Answers(plane, ask)
            await asyncio.to_thread(answers.start)
            try:
                told = AnswerObjects(plane, ask, chat=chat)
                if ask.stream:
                    pieces = answers.pieces()
                    first = await unless_gone(
                        asyncio.ensure_future(anext(pieces)), request.receive
                    )  # so that an error of the first has its own code
                    return _Stream(told.chunks(_behind(first, pieces), answers), answers)
                whole = [await unless_gone(future, request.receive) for future in answers.futures]
                return JSONResponse(told.whole(whole))
            except BaseException:
                answers.cancel()
                raise

        return written

    return [
        Route("/v1/models", _told(models), methods=["GET"]),
        Route("/v1/models/{name}", _told(model), methods=["GET"]),
        Route("/v1/embeddings", _told(embeddings), methods=["POST"]),
        Route("/v1/features", _told(features), methods=["POST"]),
        Route("/v1/completions", _told(writer(read_completion, chat=False)), methods=["POST"]),
        Route("/v1/chat/completions", _told(writer(read_chat, chat=True)), methods=["POST"]),
    ]


def _listed(data: list[Any], model: str, tokens: int) -> JSONResponse:
    """What was made of texts with so many tokens, an object for each text."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage})


def error_object(error: Refused) -> dict[str, Any]:
    """An error as OpenAI's clients read it.

    >>> error_object(Full(2.0))["error"]["code"]
    'server_full'
    """
    status = status_of(error)
    code = {404: "model_not_found", 413: "too_large", 503: "server_full", 504: "timeout"}.get(status)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": code}}


async def wrong_method(request: Request, error: Exception) -> Response:
    """The answer to a method that a route does not know."""
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    told = Invalid(f"{shown(request.url.path)} knows no {shown(request.method)}; use {headers.get('Allow', 'GET')}")
    return JSONResponse(error_object(told), 405, headers)


class _Stream(Response):
    """Sends events as they come; when the client leaves, its answers end.

    Args:
        events: of the stream.
        answers: that it shows.
    """

    def __init__(self, events: AsyncIterator[bytes], answers: Answers) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._events, self._answers = events, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            gone.cancel()
            sending.cancel()
            self._answers.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for part in self._events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except OSError:  # the client has left
            return
        except Exception as error:  # an answer failed on its way, which the stream can only tell as an event
            await send({"type": "http.response.body", "body": event(error_object(refusal(error))), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _told(handler: Handler) -> Handler:
    """A handler whose errors become answers."""

    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except Gone:
            return Response(status_code=_LEFT)
        except (Refused, ValueError, MemoryError) as found:
            error = refusal(found)
            headers = {"Retry-After": str(max(1, round(error.retry_after)))} if isinstance(error, Full) else None
            return JSONResponse(error_object(error), status_of(error), headers)

    return told


async def _behind(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in rest:
        yield one


def _named(plane: Plane) -> list[tuple[str, Loaded]]:
    """The deployed models by the names under which callers may ask for them."""
    models = [one for one in plane.loaded if one.model is not None]
    latest = {one.name: plane.find(one.name) for one in models}
    versions = [(f"{one.name}@{one.version}", one) for one in models if latest[one.name] is not one]
    return [*((name, one) for name, one in latest.items() if one.model is not None), *versions]


def _model(name: str, loaded: Loaded, begun: int) -> dict[str, Any]:
    saes = {} if loaded.model is None else loaded.model.saes
    listed = [{"name": sae.name, "hook": sae.hook, "d_sae": sae.d_sae} for sae in saes.values()]
    told = {"version": loaded.version, "saes": listed}
    return {"id": name, "object": "model", "created": begun, "owned_by": "sae-runtime", "sae": told}


def _tokens(seen: TextFeatures, shown: TokenObjects) -> list[dict[str, Any]]:
    tokens = shown.tokens(seen.ids.tolist(), seen.saes)
    for token, (start, end), special in zip(tokens, seen.offsets.tolist(), seen.special.tolist(), strict=True):
        token |= {"start": start, "end": end, "special": special}
    return tokens


def _read_tokens(loaded: Loaded, texts: Sequence[str]) -> int:
    """How many tokens of texts `embed` reads."""
    assert loaded.model is not None
    tokenizer, sentence = loaded.model.tokenizer, loaded.model.layout.sentence
    most = tokenizer.max_length if sentence is None or sentence.max_length is None else sentence.max_length
    lengths = map(len, tokenizer.encode(texts))
    return sum(lengths) if most is None else sum(min(length, most) for length in lengths)


def _of_width(vectors: NDArray[np.float32], width: Any) -> NDArray[np.float32]:
    """The first numbers of vectors; those whose length is 1 have it again."""
    whole = vectors.shape[1]
    if width is None or width == whole and type(width) is int:
        return vectors
    if type(width) is not int or not 1 <= width <= whole:
        raise BadField("dimensions", f"dimensions is a whole number from 1 to {whole}, the model's; give one")
    cut = vectors[:, :width]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    normal = np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    return cut / np.maximum(lengths, 1e-12) if normal else cut


def _coded(vector: NDArray[np.float32], form: str) -> Any:
    if form == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return vector.tolist()
