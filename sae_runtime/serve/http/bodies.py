"""Bodies of requests: read with a limit and in a time, inflated with the same limit."""

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sae_runtime.serve.errors import Invalid, TooLarge

_WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # of zlib, by Content-Encoding

Receive = Callable[[], Awaitable[Any]]


class Gone(Exception):
    """The client has left."""


class Slow(Exception):
    """The client did not send its request in time."""


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], most: int, seconds: float, hold: Callable[[int], None]
) -> bytes:
    """The body of a request, inflated.

    Args:
        receive: of ASGI.
        headers: by name.
        most: bytes that it may have, before and after it is inflated.
        seconds: in which it must be here.
        hold: is told of so many bytes that are now held; may raise.

    Raises:
        Gone: the client has left.
        Invalid: it is not what its Content-Encoding says.
        Slow: it is not here in time.
        TooLarge: it has more bytes.

    >>> async def receive():
    ...     return {"type": "http.request", "body": zlib.compress(bytes(100)), "more_body": False}
    >>> len(asyncio.run(read_body(receive, {b"content-encoding": b"deflate"}, 100, 1.0, lambda size: None)))
    100
    """
    said = headers.get(b"content-length", b"0")
    if said.isdigit() and int(said[:20]) > most:
        raise _too_large(most)
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding != b"identity" and coding not in _WINDOWS:
        raise Invalid("the Content-Encoding is not known here; send gzip, deflate or plain bytes")
    message = await _first(receive, seconds)
    body: bytes = message.get("body", b"")
    hold(len(body))
    if message.get("more_body"):
        body = await _rest(receive, body, most, seconds, hold)
    if len(body) > most:
        raise _too_large(most)
    if coding == b"identity":
        return body
    found = await asyncio.to_thread(_inflated, body, _WINDOWS[coding], most)
    hold(len(found))
    return found


async def pass_over(receive: Receive, most: int, seconds: float) -> None:
    """Read the rest of a body that is too large and forget it, so that its client reads the answer.

    Args:
        receive: of ASGI.
        most: bytes that are read; a client that sends more meets a closed connection.
        seconds: in which they are read.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while size < most:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def _first(receive: Receive, seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            message = await receive()
    except TimeoutError:
        raise Slow from None
    if message["type"] == "http.disconnect":
        raise Gone
    return message


async def _rest(receive: Receive, begun: bytes, most: int, seconds: float, hold: Callable[[int], None]) -> bytes:
    parts, size, until = [begun], len(begun), asyncio.get_running_loop().time() + seconds
    while True:
        if size > most:
            raise _too_large(most)
        message = await _first(receive, until - asyncio.get_running_loop().time())
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        hold(len(parts[-1]))
        if not message.get("more_body"):
            return b"".join(parts)


def _inflated(body: bytes, window: int, most: int) -> bytes:
    inflating = zlib.decompressobj(window)
    try:
        found = inflating.decompress(body, most + 1)
    except zlib.error as error:
        raise Invalid(f"the body is not what its Content-Encoding says ({error}); compress it so") from None
    if len(found) > most:
        raise _too_large(most)
    if not inflating.eof or inflating.unused_data:
        raise Invalid("the body is not one whole compressed stream; send all of one, and nothing behind it")
    return found


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body has more than {most} bytes, inflated or not; send less at once")
