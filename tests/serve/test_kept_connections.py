"""A connection whose request takes longer than headers may, with each of uvicorn's parsers: it stays, and is kept."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from sae_runtime.serve.http import server

ASKED = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n"


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """Answers after the time that headers have."""
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.1)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_an_answer_that_takes_longer_than_headers_may_keeps_its_connection(
    parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(parser)
    monkeypatch.setattr(server, "_SECONDS", 0.05)
    config = uvicorn.Config(slow, http=parser, lifespan="off", log_level="error")
    config.load()
    state, protocol = uvicorn.server.ServerState(), server.guarded(config.http_protocol_class)

    async def ask() -> list[bytes]:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: protocol(config, state, {}), theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        got = []
        for _ in range(2):
            for part in (ASKED, b"{}"):  # as clients send them
                writer.write(part)
                await writer.drain()
            got.append(await reader.readuntil(b"ok"))
        writer.write(ASKED[:20])  # a third whose headers do not come
        got.append(await reader.read())
        writer.close()
        await asyncio.gather(*state.tasks)
        return got

    first, second, third = asyncio.run(ask())
    assert first.startswith(b"HTTP/1.1 200") and second.startswith(b"HTTP/1.1 200") and third == b""
