"""The server's process: the address, slow and endless headers, and the end by SIGTERM."""

import asyncio
import gc
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from sae_runtime.serve.http.app import App
from sae_runtime.serve.http.keys import is_loopback

_HEADERS = 64 << 10  # bytes of a request's line and headers
_SECONDS = 10.0  # in which a request's headers must be here
_GRACE = 1.0  # seconds in which a server that ends still answers new requests, while balancers see that it is not ready
_CONNECTIONS = 4096


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the address cannot be had; the message names it.

    >>> listen("127.0.0.1", 0).close()
    """
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except (OSError, UnicodeError) as error:
        if found is not None:
            found.close()
        reason = getattr(error, "strerror", None) or "it is no name"
        why = f"no server can listen on {host or repr(host)} port {port} ({reason}); choose another --host or --port"
        raise OSError(why) from None
    return found


class Server(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT; then it is not ready, answers what it accepted, and ends.

    Args:
        app: the application.
        started: is called when requests are taken.
    """

    def __init__(self, app: App, *, started: Callable[[], None] | None = None) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_level="error",
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(app.plane.limits.seconds) + 1,
            limit_concurrency=_CONNECTIONS,
        )
        config.load()
        config.http_protocol_class = guarded(config.http_protocol_class)
        super().__init__(config)
        self._app, self._told, self._leaves = app, started, 0.0

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to end; a second signal ends at once, without what waits for threads that compute."""
        if self._app.leaving:
            sys.stderr.write("ended at once\n")
            os._exit(128 + sig)
        left = self._app.plane.admission.waiting
        waits = f", when {left} request{'s are' if left > 1 else ' is'} answered; Ctrl-C ends at once" if left else ""
        sys.stderr.write(f"ending{waits}\n")
        self._app.leaving, self._leaves = True, self._leaves or time.monotonic() + _GRACE

    async def on_tick(self, counter: int) -> bool:
        """Whether the time has come to close, asked ten times a second."""
        if self._leaves and time.monotonic() > self._leaves:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and tell so."""
        await super().startup(sockets)
        gc.freeze()  # what is loaded stays, so the collector need not look at it again and again
        if self._told is not None:
            self._told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, after connections that were accepted had a moment to bring their first request."""
        for server in self.servers:
            server.close()
        until = time.monotonic() + _GRACE
        connections: Any = self.server_state.connections
        while time.monotonic() < until and any(one.cycle is None for one in connections):
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def guarded(protocol: Any) -> Any:
    """uvicorn's class of connections, with limits to the size and the time of headers."""

    class Guarded(protocol):  # type: ignore[misc]  # its base is what is installed
        _size = 0
        _late: asyncio.TimerHandle | None = None  # while a request's headers are awaited

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._came()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if self._late is None and (before is None or before.response_complete):
                self._wait()
            super().data_received(data)
            if self.cycle is not before:
                self._came()
            elif self._late is not None:
                self._size += len(data)
                if self._size > _HEADERS:
                    self.transport.close()

        def _wait(self) -> None:
            self._size, self._late = 0, asyncio.get_running_loop().call_later(_SECONDS, self.transport.close)

        def _came(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Guarded


def hosts_of(host: str, keys: tuple[bytes, ...]) -> tuple[str, ...] | None:
    """Names under which browsers may ask: this machine's own where it alone can be meant and no key protects it.

    >>> hosts_of("127.0.0.1", ()), hosts_of("0.0.0.0", ())
    (('localhost', '127.0.0.1', '::1'), None)
    """
    return ("localhost", "127.0.0.1", "::1") if is_loopback(host) and not keys else None
