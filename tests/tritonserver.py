"""A real tritonserver on free ports of this machine, as `make triton` installs it."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(sys.prefix) / "triton"
BIN = HOME / "server" / "pytriton" / "tritonserver"
STUB = BIN / "backends" / "python" / "triton_python_backend_stub"
OLD_NUMPY = HOME / "python"
"""An environment with numpy 1; that of the tests has numpy 2."""
_SECONDS = 300


def is_possible() -> bool:
    """Whether the server is installed and its stub finds the library of Python."""
    if not (HOME / "done").is_file() or shutil.which("ldd") is None:
        return False
    return "not found" not in subprocess.run(["ldd", STUB], capture_output=True, text=True).stdout


@dataclass
class Running:
    """A server that answers: its process and its ports."""

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    log: Path

    def stub(self, model: str) -> int:
        """The process that runs a model of the Python backend."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == self.process.pid and any(f"/{model}/".encode() in word for word in words):
                return int(process.name)
        raise AssertionError(f"no stub of {model}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def tritonserver(
    repository: Path, log: Path, *, environment: Path = OLD_NUMPY, more: Sequence[str] = ()
) -> Iterator[Running]:
    """Run a server on a repository until the block ends.

    Args:
        repository: of its models. It need not be sound: what does not load is not ready.
        log: where the server's output goes.
        environment: whose Python the models of the Python backend run in.
    """
    http, grpc = _free_ports(2)
    words = [
        *(BIN / "bin" / "tritonserver", "--model-repository", repository, "--backend-directory", BIN / "backends"),
        *("--http-address", "127.0.0.1", "--http-port", http, "--grpc-address", "127.0.0.1", "--grpc-port", grpc),
        *("--allow-metrics=false", "--disable-auto-complete-config", "--exit-on-error=false"),
        *("--exit-timeout-secs", 5, *more),
    ]
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"  # the stub takes the first python3
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in words], stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PATH": path}
        )
    running = Running(process, http, grpc, log)
    try:
        _wait_until_it_answers(running)
        yield running
    finally:
        shared = _shared(process.pid)
        process.terminate()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in shared:  # it stays where the server did not end in its time, as after a model's process was killed
            left.unlink(missing_ok=True)


def _shared(process: int) -> set[Path]:
    """The files of shared memory of a server."""
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:  # it has ended
        return set()
    return {Path(words[-1]) for words in map(str.split, lines) if words[-1].startswith("/dev/shm/triton_python")}


def _wait_until_it_answers(running: Running) -> None:
    import tritonclient.http

    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        assert running.process.poll() is None, running.log.read_text(errors="replace")[-2000:]
        try:
            with tritonclient.http.InferenceServerClient(f"127.0.0.1:{running.http}") as client:
                if client.is_server_live() and not _loading(client):
                    return
        except Exception:  # it does not listen yet
            pass
        time.sleep(0.2)
    raise AssertionError(f"no answer of tritonserver: {running.log.read_text(errors='replace')[-2000:]}")


def _loading(client: Any) -> bool:
    """Whether a model is neither ready nor refused."""
    return any(model.get("state") not in ("READY", "UNAVAILABLE") for model in client.get_model_repository_index())
