"""Servers for benchmarks, each a process of its own on a port of this machine."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_HERE = Path(__file__).resolve().parent
_START = 120.0  # seconds; torch and its libraries may come from a cold disk
_STOP = 60.0

KSERVE = Path(sys.prefix) / "kserve" / "bin" / "python"
RAY = Path(sys.prefix) / "ray"  # has FastAPI, which Ray Serve needs


class Server:
    """A server that answers; SIGTERM ends it when the block ends.

    Args:
        words: its command.
        port: where it listens.
        ready: what it answers by 200 once it is ready.
        settings: more environment variables.

    Raises:
        OSError: another server has the port, which would be measured in place of this one.
    """

    def __init__(
        self, words: Sequence[object], port: int, ready: str = "/v2/health/ready", settings: Mapping[str, str] = {}
    ) -> None:
        self.port, self._ready = port, ready
        with socket.socket() as other:
            if other.connect_ex(("127.0.0.1", port)) == 0:
                raise OSError(f"port {port} answers already; end that server, or give another --port")
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            list(map(str, words)), env=os.environ | settings, stdout=self._said, stderr=subprocess.STDOUT
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        end = time.monotonic() + _START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"the server did not start:\n{self.said()[-3000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> int:
        """End it by SIGTERM; the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit status of a server that ends, by SIGKILL where that takes a minute."""
        try:
            return self._process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def said(self) -> str:
        """What it wrote."""
        self._said.seek(0)
        return self._said.read()

    @property
    def memory(self) -> float:
        """Resident MB."""
        line = next(s for s in Path(f"/proc/{self.pid}/status").read_text().splitlines() if s.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    @property
    def descriptors(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self._ready)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def ours(models: Mapping[str, Path], port: int, *, merged: bool = True) -> Server:
    """`sae-runtime serve` with these models; where it is not `merged`, it computes each request by itself."""
    command = [Path(sys.prefix) / "bin" / "sae-runtime", "serve"]
    words = command if merged else [sys.executable, _HERE / "serve_unmerged.py"]
    named = [f"{name}={path}" for name, path in models.items()]
    return Server([*words, *named, "--port", port, "--no-access-log"], port)


def kserve(models: Mapping[str, Path], port: int) -> Server:
    """The same SAEs behind kserve's own server."""
    named = [f"{name}={path}" for name, path in models.items()]
    settings = {"PYTHONPATH": str(_HERE.parent)}
    return Server([KSERVE, _HERE / "peer_kserve.py", port, *named], port, settings=settings)


def fastapi(models: Mapping[str, Path], port: int) -> Server:
    """The same SAEs in SAELens behind FastAPI."""
    named = [f"{name}={path}" for name, path in models.items()]
    words = [sys.executable, _HERE / "peer_fastapi.py", port, *named]
    return Server(words, port, ready="/openapi.json", settings={"PYTHONPATH": str(RAY)})
