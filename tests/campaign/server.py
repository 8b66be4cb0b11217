"""A warm process that has imported everything and forks one process for each command.

A fault then costs what its command does, without the seconds that torch takes to import. The process is started under
the library of faults.c, if there is one.
"""

import ctypes
import dataclasses
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIME_LIMIT = 120.0  # seconds of a command; those of the campaign take some seconds at most


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command to run in a folder, and what is to happen to it.

    Attributes:
        at: the number of the call that fails or is met by the signal, from 1; 0 for none.
        error: the errno of the failing call. full: later calls that need space fail too, as on a full disk.
        signal: sent at that call, or with `after`, that many seconds after the start.
        learn: import what the command imported, so that the next ones find it there.
    """

    folder: str
    arguments: Sequence[str]
    at: int = 0
    error: int = 0
    full: bool = False
    signal: int = 0
    after: float | None = None
    learn: bool = False


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended; `code` is that of `subprocess`, and `failed` the chosen calls with their files."""

    code: int
    stdout: str
    stderr: str
    failed: Sequence[str]
    calls: int
    seconds: float
    hung: bool


class Server:
    """The warm process. Use it as a context."""

    def __init__(self, library: Path | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SAE_RUNTIME_")}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": import_path()}
        if library is not None:
            environment["LD_PRELOAD"] = str(library)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaign.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, job: Job) -> Ended:
        """Run a command to its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


def import_path() -> str:
    """PYTHONPATH of a process that imports this package."""
    return os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))


@functools.cache
def shim() -> Path | None:
    """The library of faults.c, built once; None where there is no compiler, or no Linux."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = Path(tempfile.mkdtemp()) / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def _serve() -> None:
    """Run the jobs of stdin, a line of JSON each, and answer each by a line."""
    home = Path(tempfile.mkdtemp())
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(Job(**json.loads(line)), home)) + "\n")
        sys.stdout.flush()
    shutil.rmtree(home)


def _run(job: Job, home: Path) -> dict[str, Any]:
    files = {name: home / name for name in ("stdout", "stderr", "report")}
    for file in files.values():
        file.write_bytes(b"")
    begin = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the command begins
    process = os.fork()
    if process == 0:
        _work(job, files)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    code, hung = _ended(process, job, begin)
    seconds = time.monotonic() - begin
    report = files["report"].read_text(errors="replace").splitlines()
    last: dict[str, Any] = (
        json.loads(report.pop()) if report and report[-1].startswith("{") else {"calls": 0, "modules": []}
    )
    if job.learn:
        for module in last["modules"]:
            try:
                importlib.import_module(module)
            except Exception:  # a module that its package makes by other means
                continue
    texts = {name: files[name].read_text(errors="replace") for name in ("stdout", "stderr")}
    return {"code": code, "failed": report, "calls": last["calls"], "seconds": seconds, "hung": hung, **texts}


def _ended(process: int, job: Job, begin: float) -> tuple[int, bool]:
    """The exit code of a process, and whether it had to be killed."""
    due = None if job.after is None else begin + job.after
    hung = False
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), hung
        now = time.monotonic()
        if due is not None and now >= due:
            os.kill(process, job.signal)
            due = None
        if now > begin + TIME_LIMIT and not hung:
            os.kill(process, signal.SIGKILL)
            hung = True
        time.sleep(0.001)


def _work(job: Job, files: dict[str, Path]) -> None:
    """Be the forked process: run the command under its fault, and end."""
    code = 1
    library = ctypes.CDLL(None)
    try:
        report = os.open(files["report"], os.O_WRONLY | os.O_APPEND)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(files[name], os.O_WRONLY | os.O_APPEND), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(job.folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
        if hasattr(library, "faults_arm"):
            at_call = job.signal if job.after is None else 0
            library.faults_arm(os.fsencode(job.folder), job.at, job.error, job.full, at_call, report)
        from sae_runtime.cli import main

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        main.main(list(job.arguments), prog_name="sae-runtime")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # before the command began, or after it ended
        os.write(2, b"interrupted outside of the command\n")
        code = 130
    except BaseException:
        traceback.print_exc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.flush()
    calls = library.faults_count() if hasattr(library, "faults_count") else 0
    os.write(report, json.dumps({"calls": calls, "modules": list(sys.modules) if job.learn else []}).encode())
    os._exit(code)


if __name__ == "__main__":
    _serve()
