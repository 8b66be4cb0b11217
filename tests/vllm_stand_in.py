"""An application that answers as the routes of vLLM's API server do, and an engine whose features a rule gives."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sae_runtime.serve.vllm.asking import Reader
from sae_runtime.serve.vllm.settings import read_settings

KEY = "right"
VOCABULARY = {f"w{number}": number for number in range(100)}


def features_at(token: int, position: int, d_sae: int) -> dict[int, float]:
    """The active features of a token at a position, as the engine's rule has them."""
    return {(7 * token + 3 * place + position) % d_sae: 1.0 + place + token / 8 for place in range(4)}


class Engine:
    """An engine: what it was asked, what it keeps, and what was dropped.

    Args:
        sae: the key `sae` of the additional configuration.
        d_sae: of each SAE.
    """

    def __init__(self, sae: Any, d_sae: int) -> None:
        settings = read_settings({"sae": sae}) if sae else None
        self.input_processor = SimpleNamespace(sae_reader=Reader(settings, 65504.0) if settings else None)
        self.names = [place.name for place in settings.saes] if settings else []
        self.kept: dict[str, dict[str, dict[int, Any]]] = {}
        self.asked: list[dict[str, Any]] = []
        self.dropped: list[str] = []
        self.dead, self._d_sae = False, d_sae

    def get_tokenizer(self) -> Any:
        """A tokenizer with a vocabulary alone."""
        return SimpleNamespace(get_vocab=lambda: VOCABULARY)

    async def collective_rpc(self, method: str, args: Sequence[Any] = ()) -> list[Any]:
        """What the workers give."""
        await asyncio.sleep(0)
        if self.dead:
            raise RuntimeError("EngineCore encountered an issue")
        if method == "sae_status":
            return [{name: {"hook": "layers.0", "d_sae": self._d_sae, "l0": None} for name in self.names}]
        if method == "sae_drop":
            self.dropped += args[0]
            return [[self.kept.pop(ticket, None) for ticket in args[0]] and None]
        return [{ticket: self.kept.pop(ticket, {}) for ticket in args[0]}]

    def run(self, request: str, child: int, xargs: Mapping[str, Any], ids: Sequence[int]) -> None:
        """Read the tokens of an answer, and one too many, as asynchronous scheduling may."""
        self.asked.append(dict(xargs))
        if not xargs.get("sae_features"):
            return
        rows = [features_at(token, place, self._d_sae) for place, token in enumerate(ids)]
        counts = np.cumsum([0, *map(len, rows)])
        arrays = {
            "positions": np.arange(len(rows), dtype=np.int32).tobytes(),
            "indptr": counts.astype(np.int64).tobytes(),
            "indices": np.concatenate([np.array(sorted(row), np.int32) for row in rows]).tobytes(),
            "values": np.concatenate([np.array([row[k] for k in sorted(row)], np.float32) for row in rows]).tobytes(),
        }
        answers = self.kept.setdefault(xargs["sae_ticket"], {}).setdefault(request, {})
        answers[child] = dict.fromkeys(self.names, arrays)


class _Keyed:
    """vLLM's check of its API key."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        keyed = dict(scope.get("headers", ())).get(b"authorization") == f"Bearer {KEY}".encode()
        if scope["type"] == "http" and scope["path"].startswith("/v1") and not keyed:
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def written(prompt: Sequence[int], child: int, most: int) -> list[int]:
    """The tokens of an answer."""
    return [(prompt[-1] + 5 * child + place + 1) % 100 for place in range(most)]


def application(engine: Engine, middlewares: Sequence[Any]) -> Starlette:
    """The application with middlewares that stand before its check of the key, the first one outermost."""

    async def answered(request: Request) -> Response:
        body = await request.json()
        chat = request.url.path.startswith("/v1/chat")
        fault = _fault(body)
        if fault is not None:
            return JSONResponse(
                {"error": {"message": fault, "type": "BadRequestError", "param": None, "code": 400}}, 400
            )
        texts = [body["messages"][-1]["content"]] if chat else body["prompt"]
        prompts = [
            [VOCABULARY[word] for word in text.split()] for text in ([texts] if isinstance(texts, str) else texts)
        ]
        base = request.headers.get("x-request-id") or body.get("request_id") or "abc"
        told = Told(engine, body, base, prompts, chat=chat)
        if body.get("stream"):
            return StreamingResponse(told.stream(), media_type="text/event-stream")
        return JSONResponse(told.whole())

    async def other(request: Request) -> Response:
        return JSONResponse({"got": (await request.body()).decode("latin-1")})

    routes = [Route(path, answered, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/completions")]
    routes += [Route(path, other, methods=["POST"]) for path in ("/v1/responses", "/v1/embeddings", "/tokenize")]
    order = [*(Middleware(one) for one in middlewares), Middleware(_Keyed)]
    app = Starlette(routes=routes, middleware=order)
    app.state.engine_client = engine
    return app


def _fault(body: Any) -> str | None:
    if not isinstance(body, dict) or "sae" in body:
        return "the body is no object of the protocol"
    if body.get("model") != "m":
        return f"The model `{body.get('model')}` does not exist."
    xargs = body.get("vllm_xargs")
    sound = isinstance(xargs, dict | None) and all(
        isinstance(one, str | int | float | list) for one in (xargs or {}).values()
    )
    return None if sound else "vllm_xargs has another form"


class Told:
    """The objects of an answer, as vLLM 0.32 writes them.

    Args:
        engine: that wrote it.
        body: of the request.
        base: the id of the request.
        prompts: ids of the tokens of each.
        chat: of which route.
    """

    def __init__(self, engine: Engine, body: Any, base: str, prompts: Sequence[list[int]], *, chat: bool) -> None:
        self._chat, self._body, self._prompts = chat, body, prompts
        self._ids = body.get("return_token_ids") is True
        n, most = body.get("n") or 1, body.get("max_tokens") or 4
        self._id = f"chatcmpl-{base}" if chat else f"cmpl-{base}"
        self._answers = []
        for number, prompt in enumerate(prompts):
            for child in range(n):
                new = written(prompt, child, most)
                request = self._id if chat else f"{self._id}-{number}"
                engine.run(request, child, body.get("vllm_xargs") or {}, [*prompt, *new])
                self._answers.append((prompt, new))
        tokens = sum(map(len, prompts)), sum(len(new) for _, new in self._answers)
        self._usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}

    def whole(self) -> dict[str, Any]:
        """The object of a whole answer, with null where nothing was asked."""
        choices = []
        for number, (prompt, new) in enumerate(self._answers):
            text = " ".join(f"w{one}" for one in new)
            shown: dict[str, Any] = {"token_ids": new if self._ids else None}
            if self._chat:
                shown["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                shown |= {"text": text, "prompt_token_ids": prompt if self._ids else None}
            choices.append({"index": number, **shown, "logprobs": None, "finish_reason": "length"})
        kind = "chat.completion" if self._chat else "text_completion"
        told = {"id": self._id, "object": kind, "created": 1, "model": "m", "choices": choices, "usage": self._usage}
        if self._chat:
            told["prompt_token_ids"] = self._prompts[0] if self._ids else None
        return told

    async def stream(self) -> AsyncIterator[str]:
        """The events of a stream: the answers a token each in turn, with comments that keep the connection alive."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        head = {"id": self._id, "object": kind, "created": 1, "model": "m"}
        for number, (prompt, _) in enumerate(self._answers) if self._chat else ():
            first = {"index": number, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield _event({**head, "choices": [first], "prompt_token_ids": prompt if self._ids else None})
        for place in range(max(len(new) for _, new in self._answers)):
            yield ": keep-alive\n\n"
            for number, (prompt, new) in enumerate(self._answers):
                text = f"w{new[place]} "
                choice: dict[str, Any] = {
                    "index": number,
                    **({"delta": {"content": text}} if self._chat else {"text": text}),
                }
                choice |= {"logprobs": None, "finish_reason": "length" if place == len(new) - 1 else None}
                choice["token_ids"] = [new[place]] if self._ids else None
                if not self._chat:
                    choice["prompt_token_ids"] = prompt if self._ids and place == 0 else None
                yield _event({**head, "choices": [choice]})
                await asyncio.sleep(0)
            if place == 1 and self._body.get("user") == "fails":
                yield _event(
                    {"error": {"message": "it ended", "type": "InternalServerError", "param": None, "code": 500}}
                )
                yield "data: [DONE]\n\n"
                return
        if (self._body.get("stream_options") or {}).get("include_usage"):
            yield _event({**head, "choices": [], "usage": self._usage})
        yield "data: [DONE]\n\n"


def _event(told: Any) -> str:
    return f"data: {json.dumps(told)}\n\n"


def settings(bundle: Path, **more: Any) -> dict[str, Any]:
    """The key `sae` of two SAEs of a bundle."""
    places = [{"bundle": str(bundle), "hook": "layers.0", "name": name} for name in ("one", "two")]
    return {"saes": places, **more}
