"""Processes in the environment of vLLM, `.venv/vllm`, which `make vllm` makes: functions called there, its API server.

The tests' environment has no vLLM, and vLLM's has no pytest.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from processes import free_port
from running import asked

ROOT = Path(__file__).parents[1]
LLM_CALLS = ROOT / "tests" / "serve" / "inside_vllm" / "llm_calls.py"
HOME = Path(sys.prefix) / "vllm"
PYTHON = HOME / "bin" / "python"
MODEL = Path(sys.prefix) / "smollm2"
"""SmolLM2-135M-Instruct."""
needs_vllm = [
    pytest.mark.servers,
    pytest.mark.skipif(not (HOME / "done").is_file(), reason="make vllm installs it"),
    pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="make smollm2"),
]
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process starts faster
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "benchmarks"))),
}


class Raised(Exception):
    """What a function raised in vLLM's environment.

    Attributes:
        is_value_error: whether it was a ValueError.
        sentence: its message.
    """

    def __init__(self, is_value_error: bool, sentence: str, trace: str) -> None:
        super().__init__(f"{sentence}\n{trace}")
        self.is_value_error, self.sentence = is_value_error, sentence


class Called:
    """A process of vLLM's environment that has imported a script, and calls its functions one after the other."""

    def __init__(self, process: "subprocess.Popen[bytes]", connection: Connection, log: Path) -> None:
        self._process, self._connection, self.log = process, connection, log

    def __call__(self, function: str, *arguments: Any, seconds: float = 240, **named: Any) -> Any:
        """What a function of the script gives, for arguments that are plain types, numpy's, or of this project.

        Raises:
            Raised: the function raised something.
        """
        try:
            self._connection.send((function, arguments, named))
            end = time.monotonic() + seconds
            while not self._connection.poll(0.5):
                assert self._process.poll() is None, self._said("the process ended")
                assert time.monotonic() < end, self._said(f"{function} gave nothing in {seconds} s")
            given, raised = self._connection.recv()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            raise AssertionError(self._said("the process ended")) from None
        if raised is not None:
            raise Raised(*raised)
        return given

    def _said(self, what: str) -> str:
        return f"{what}: {self.log.read_text(errors='replace')[-4000:]}"


@contextmanager
def called(script: Path, log: Path, **settings: str) -> Iterator[Called]:
    """Start a process that imports a script of functions, until the block ends.

    Args:
        script: a Python file. It keeps what its functions leave in it, such as an engine.
        log: where the process's output goes.
        settings: environment variables beside `SETTINGS`.
    """
    here, there = multiprocessing.Pipe()
    words = [str(PYTHON), str(ROOT / "tests" / "vllm_child.py"), str(there.fileno()), str(script)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=[there.fileno()],
            env=os.environ | SETTINGS | settings,
            start_new_session=True,
        )
    there.close()
    try:
        yield Called(process, here, log)
    finally:
        here.close()  # then it ends by itself
        _end(process)


@contextmanager
def api_server(model: Path, log: Path, *more: str, **settings: str) -> Iterator[str]:
    """Run vLLM's own API server on a free port of this machine until the block ends; gives its address.

    Args:
        model: a folder of transformers.
        log: where the server's output goes.
        more: options of the command.
        settings: environment variables beside `SETTINGS`.
    """
    port = free_port()
    words = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    words += ["--port", str(port), "--dtype", "float32", *more]
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env=os.environ | SETTINGS | settings, start_new_session=True
        )
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while not _is_healthy(address):
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        _end(process)


def refusal(words: list[str], log: Path, **settings: str) -> str:
    """What a command of vLLM's environment says that is expected to fail: all of its output."""
    done = subprocess.run(
        [str(PYTHON), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | SETTINGS | settings,
        timeout=240,
        start_new_session=True,
    )
    said = done.stdout.decode(errors="replace")
    log.write_text(said)
    assert done.returncode != 0, said[-4000:]
    return said


def _is_healthy(address: str) -> bool:
    try:
        return asked(address, "GET", "/health")[0] == 200
    except OSError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process to end, and kill what is left of its group, such as vLLM's engine."""
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing is left
        pass
    process.wait()


def settings_of(saes: list[dict[str, Any]], **more: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `additional_config` of SAEs, each {"bundle": PATH, ...}."""
    return {"sae": {"saes": [{**sae, "bundle": str(sae["bundle"])} for sae in saes], **more}}
