"""The Open Inference Protocol, version 2, by REST."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

from sae_runtime.core.labels import shown
from sae_runtime.serve import json_text
from sae_runtime.serve.errors import Closing, Full, Invalid, NotFound, Refused, TimedOut, TooLarge, out_of_time
from sae_runtime.serve.http import inference
from sae_runtime.serve.http.bell import bell_of
from sae_runtime.serve.http.bodies import Gone, Receive
from sae_runtime.serve.plane import Plane
from sae_runtime.serve.tensors import Tensor

STATUS: dict[type[Refused], int] = {NotFound: 404, TooLarge: 413, Invalid: 400, Full: 503, TimedOut: 504, Closing: 503}
"""The code of each error; the first class that fits."""

EXTENSIONS = ["binary_tensor_data", "model_repository"]
_PATIENCE = 0.1  # seconds that an answer may take before we look whether its client is still there
_LONG = 4096  # characters of texts that take longer than to ask another thread
_MOMENT = 0.5  # seconds in which the plane itself may say that a request's time is over
_JSON, _BYTES = b"application/json", b"application/octet-stream"


class Answer(NamedTuple):
    """An answer: its code, its body, its type, and headers besides."""

    status: int
    body: bytes
    kind: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def status_of(error: Refused) -> int:
    """The code of an error.

    >>> status_of(NotFound("there is no model"))
    404
    """
    return next(status for kind, status in STATUS.items() if isinstance(error, kind))


def refused(error: Refused) -> Answer:
    """The answer that tells an error.

    >>> refused(Invalid("x is missing")).body
    b'{"error":"x is missing"}'
    """
    headers = ((b"retry-after", str(max(1, round(error.retry_after))).encode()),) if isinstance(error, Full) else ()
    return Answer(status_of(error), json_text.to_bytes({"error": str(error)}), headers=headers)


async def answer(
    plane: Plane, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes, receive: Receive, leaving: bool
) -> Answer:
    """The answer to a request below /v2.

    Args:
        plane: what is served.
        method: of HTTP.
        path: of the request, decoded.
        headers: by name.
        body: inflated.
        receive: of ASGI, by which a client that leaves is seen.
        leaving: whether the server is about to end.

    Raises:
        Gone: the client has left.
        Refused: the request gets no answer.
    """
    match path.strip("/").split("/")[1:], method:
        case ["models", name, "infer"], "POST":
            return await _infer(plane, name, None, headers, body, receive)
        case ["models", name, "versions", version, "infer"], "POST":
            return await _infer(plane, name, version, headers, body, receive)
        case [], "GET":
            return _json({"name": "sae-runtime", "version": version_of("sae-runtime"), "extensions": EXTENSIONS})
        case ["health", "live"], "GET":
            return _json({"live": True})
        case ["health", "ready"], "GET":
            ready = plane.ready and not leaving
            return _json({"ready": ready}, 200 if ready else 503)
        case ["models", name, *version], "GET" if len(version) in (0, 2) and version[:1] in ([], ["versions"]):
            return _json(_metadata(plane, name, version[-1] if version else None))
        case ["models", name, "ready"], "GET":
            return _ready(plane, name, None, leaving)
        case ["models", name, "versions", version, "ready"], "GET":
            return _ready(plane, name, version, leaving)
        case ["repository", "index"], "POST":
            return _index(plane, body)
    if path.endswith("/infer"):
        raise NotFound(f"there is no route {method} {shown(path)}; POST /v2/models/NAME.OPERATION/infer asks a model")
    raise NotFound(
        f"there is no route {method} {shown(path)}; POST /v2/repository/index lists all models, "
        "GET /v2/models/NAME.OPERATION tells of one"
    )


async def unless_gone(
    future: "Future[Any] | asyncio.Future[Any]", receive: Receive, seconds: float | None = None
) -> Any:
    """What a future of the plane, or a task, gives, while the client is there; its work is dropped with the client.

    Args:
        future: of the answer.
        receive: of ASGI.
        seconds: for which it is waited for, and a moment more, in which the plane may tell why; None: without end.

    Raises:
        Gone: the client has left.
        TimedOut: it is in the middle of a piece of work that takes longer.
    """
    loop = asyncio.get_running_loop()
    gone: asyncio.Task[None] | None = None

    def tell(_: Any) -> None:
        if not told.done():
            told.set_result(None)

    def look() -> None:
        nonlocal gone
        gone = loop.create_task(left(receive))
        gone.add_done_callback(tell)

    if isinstance(future, Future):
        told = bell_of(loop).when_done(future)
    else:
        told = loop.create_future()
        future.add_done_callback(tell)
    patience = loop.call_later(_PATIENCE, look)  # so that short requests need no task beside them
    late = None if seconds is None else loop.call_later(seconds + _MOMENT, tell, None)
    try:
        await told
        if not future.done():
            raise Gone if gone is not None and gone.done() else out_of_time()
        return future.result()
    finally:
        patience.cancel()
        if late is not None:
            late.cancel()
        if gone is not None:
            gone.cancel()
        future.cancel()


async def accepted(submit: Callable[[], "Future[Any]"], characters: int) -> "Future[Any]":
    """The Future of a request. The plane reads its texts before it accepts it, long ones beside the event loop.

    Args:
        submit: asks the plane.
        characters: of the texts, about.

    Raises:
        Refused: the plane does not take it.
    """
    return submit() if characters < _LONG else await asyncio.to_thread(submit)


async def left(receive: Receive) -> None:
    """Wait until the client has left; a server may give empty parts of a body before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _infer(
    plane: Plane, name: str, version: str | None, headers: Mapping[bytes, bytes], body: bytes, receive: Receive
) -> Answer:
    asked = inference.read(body, headers.get(b"inference-header-content-length"))

    def submit() -> "Future[Any]":
        return plane.submit(
            name,
            asked.inputs,
            version=version,
            outputs=[*asked.outputs],
            parameters=asked.parameters,
            timeout=asked.seconds,
        )

    has_texts = any(array.dtype.kind == "O" for array in asked.inputs.values())
    future = await accepted(submit, len(body) if has_texts else 0)
    most = plane.limits.seconds
    found = await unless_gone(future, receive, most if asked.seconds is None else min(asked.seconds, most))
    text, length = inference.written(asked, found, name, version or str(plane.metadata(name).versions[-1]))
    if length is None:
        return Answer(200, text)
    return Answer(200, text, _BYTES, ((b"inference-header-content-length", str(length).encode()),))


def _metadata(plane: Plane, name: str, version: str | None) -> dict[str, Any]:
    known = plane.metadata(name, version)
    told = {"inputs": [_tensor(one) for one in known.inputs], "outputs": [_tensor(one) for one in known.outputs]}
    return {"name": known.name, "versions": list(known.versions), "platform": "sae-runtime", **told}


def _tensor(tensor: Tensor) -> dict[str, Any]:
    told = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    return told | ({"parameters": {"optional": True}} if tensor.optional else {})


def _ready(plane: Plane, name: str, version: str | None, leaving: bool) -> Answer:
    plane.metadata(name, version)
    ready = plane.ready and not leaving
    return _json({"name": name, "ready": ready}, 200 if ready else 503)


def _index(plane: Plane, body: bytes) -> Answer:
    only = json_text.read_object(body).get("ready", False) if body.strip() else False
    if not isinstance(only, bool):
        raise Invalid("ready must be true or false; give one of them")
    listed = [one for one in plane.index() if one.state == "READY" or not only]
    return _json([{"name": o.name, "version": o.version, "state": o.state, "reason": o.reason} for o in listed])


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json_text.to_bytes(value))
