"""A server on a free port: in a thread over a plane, or as the command in a process of its own."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_runtime.serve.http.app import App
from sae_runtime.serve.http.server import Server, listen
from sae_runtime.serve.plane import Plane


@contextlib.contextmanager
def running(plane: Plane, **options: Any) -> Iterator[str]:
    """Serve a plane from a thread; gives the address, and closes the plane at the end. `options` are those of `App`."""
    socket, ready = listen("127.0.0.1", 0), threading.Event()
    server = Server(App(plane, **options), started=ready.set)
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextlib.contextmanager
def running_command(*arguments: str | Path, log: Path | None = None) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `sae-runtime serve` on a free port; gives address and process, which gets SIGTERM at the end."""
    words = [sys.executable, "-m", "sae_runtime.cli", "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    if not (Path(__file__).parents[1] / "sae_runtime/cli/__main__.py").exists():
        words[1:3] = ["-c", "from sae_runtime.cli import main\nmain()"]
    with open(os.devnull if log is None else log, "w") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        address = next((line.split()[-1] for line in process.stdout if "http://" in line), "")
        assert address, "the server did not start"
        yield address, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def asked(
    address: str,
    method: str,
    path: str,
    body: bytes | Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes, Mapping[str, str]]:
    """Code, body and headers of an answer; a mapping is sent as JSON."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    sent = json.dumps(body).encode() if isinstance(body, Mapping) else body
    try:
        connection.request(method, path, sent, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()
