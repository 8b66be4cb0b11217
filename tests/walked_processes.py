"""The processes of a walk: a terminal, a Python that stays, and servers. All of them end with their `with`.

Each process begins a group of its own, by whose number it and its children are ended.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Runs orders, one JSON a line on stdin; what the code prints goes to the files that the order names.
_PYTHON = """
import json, linecache, os, sys, traceback
orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
names = {"__name__": "__main__"}
sys.path.insert(0, "")
def run(order):
    os.chdir(order["folder"])
    for number, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = "\\n" * (order["line"] - 1) + order["code"]
    linecache.cache[order["page"]] = (len(code), None, code.splitlines(True), order["page"])
    try:
        exec(compile(code, order["page"], "exec"), names)
        return ""
    except BaseException as error:
        trace = traceback.TracebackException.from_exception(error)
        trace.stack[:] = [frame for frame in trace.stack if frame.filename != "<string>"]
        return "".join(trace.format())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
for line in orders:
    print(json.dumps(run(json.loads(line))), file=answers)
"""


@dataclasses.dataclass(frozen=True)
class Ran:
    """How a block ended.

    Attributes:
        fault: a sentence; None where it went well.
        out: what it printed on stdout.
        err: what it printed on stderr.
        line: the line of the block that failed, from 1, where that is known.
        exit_code: not 0 where that is the fault.
    """

    fault: str | None
    out: str
    err: str
    line: int | None = None
    exit_code: int = 0


@contextlib.contextmanager
def started(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], **files: object
) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that leads a group; at the end the whole group is ended, gently first."""
    process = subprocess.Popen(words, cwd=folder, env=environment, text=True, start_new_session=True, **files)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        end(process)


def end(process: "subprocess.Popen[str]", patience: float = 20.0) -> None:
    """End the group of a process that was started by `started`, and wait until no process of it lives."""
    # The leader is not waited for before the end, so its number stays that of its group.
    for sign in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + patience
        if living(process.pid):
            os.killpg(process.pid, sign)
        while living(process.pid) and time.monotonic() < until:
            time.sleep(0.02)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def ended(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether a process ends within this time. It is not waited for, so that its group keeps its number."""
    until = time.monotonic() + seconds
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


class Shell:
    """A terminal: each script is a process of its own, and hands its variables and its folder to the next."""

    def __init__(self, folder: Path, environment: Mapping[str, str], timeout: float) -> None:
        self.folder, self.environment, self.timeout = folder, {**environment, "PWD": str(folder)}, timeout
        self._kept = tempfile.TemporaryDirectory()

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.cleanup()

    def path(self, name: str) -> Path:
        """A file of the walk that is not in the folder of the page."""
        return Path(self._kept.name) / name

    def words(self, script: str) -> list[str]:
        """The command that runs a script."""
        self.path("block").write_text(script)
        return ["bash", "-a", "-euo", "pipefail", str(self.path("block"))]

    def run(self, script: str) -> Ran:
        """Run lines of the shell to their end."""
        traced = f"trap 'echo $LINENO >{self.path('line')}' ERR; {script}\ntrap - ERR\nenv -0 >{self.path('state')}\n"
        for name in ("line", "state"):
            self.path(name).unlink(missing_ok=True)
        with (
            open(self.path("out"), "w") as out,
            open(self.path("err"), "w") as err,
            started(
                self.words(traced), self.folder, self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            ) as process,
        ):
            over = not ended(process, self.timeout)
        printed = self.path("out").read_text(errors="replace"), self.path("err").read_text(errors="replace")
        if over or process.returncode:
            line = int(self.path("line").read_text()) if self.path("line").exists() else None
            fault = f"did not end in {self.timeout:g} s" if over else f"ended with exit code {process.returncode}"
            return Ran(fault, *printed, line, 0 if over else process.returncode)
        if not self.path("state").exists():
            return Ran("left the terminal before its last line", *printed)
        state = self.path("state").read_text().split("\0")
        self.environment = {
            name: value for name, _, value in (one.partition("=") for one in state if one) if name not in ("_", "SHLVL")
        }
        self.folder = Path(self.environment["PWD"])
        return Ran(None, *printed)


class Python:
    """An interpreter whose names stay from block to block; it starts with the first block."""

    def __init__(self, shell: Shell) -> None:
        self._shell, self._stack = shell, contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Python":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, code: str, page: str, line: int) -> Ran:
        """Run Python whose first line is this one of the page."""
        shell = self._shell
        if self._process is None:
            log = self._stack.enter_context(open(shell.path("python"), "w"))
            self._process = self._stack.enter_context(
                started(
                    [sys.executable, "-u", "-c", _PYTHON],
                    shell.folder,
                    shell.environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        paths = shell.path("py-out"), shell.path("py-err")
        order = {"code": code, "page": page, "line": line, "folder": str(shell.folder)}
        order |= {"out": str(paths[0]), "err": str(paths[1])}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        in_time, _, _ = select.select([self._process.stdout], [], [], shell.timeout)
        answer = self._process.stdout.readline() if in_time else ""
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in paths)
        if not answer:
            fault = "ended its process" if in_time else f"did not end in {shell.timeout:g} s"
            return Ran(fault, out, err)
        trace = json.loads(answer)
        return Ran("raised an error" if trace else None, out, err + trace)


class Servers:
    """Servers in other terminals, by the ports that they take."""

    def __init__(self, shell: Shell, port: int) -> None:
        self._shell, self._port = shell, port
        self._running: list[tuple[set[int], contextlib.ExitStack]] = []

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.ExitStack() as all_stacks:
            for _, stack in self._running:
                all_stacks.push(stack)

    def start(self, script: str) -> tuple[Ran, "Path"]:
        """Start a server and wait until it answers; gives also the file of what it prints on stdout."""
        ports = {int(number) for number in re.findall(r"(?:[\s:=]|port )(\d{4,5})\b", script)} or {self._port}
        for taken, stack in self._running:
            if taken & ports:
                stack.close()
        self._running = [(taken, stack) for taken, stack in self._running if not taken & ports]
        number, stack = len(list(self._shell.path(".").glob("server-*"))), contextlib.ExitStack()
        self._running.append((ports, stack))
        out, err = self._shell.path(f"server-{number}-out"), self._shell.path(f"server-{number}-err")
        process = stack.enter_context(
            started(
                self._shell.words(script),
                self._shell.folder,
                {**self._shell.environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context(open(out, "w")),
                stderr=stack.enter_context(open(err, "w")),
            )
        )
        until = time.monotonic() + self._shell.timeout
        fault: str | None = None
        while not any(map(_answers, ports)):
            if ended(process, 0.05):
                fault = "ended before it answered"
                break
            if time.monotonic() > until:
                fault = f"did not answer in {self._shell.timeout:g} s"
                break
        return Ran(fault, out.read_text(errors="replace"), err.read_text(errors="replace")), out


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status != 503
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
