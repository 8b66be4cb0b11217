"""Callers of a server over HTTP, in a process of their own that measures its processor time and the server's.

They speak HTTP/1.1 on asyncio's bare protocol with requests that were made before, so a request costs a caller little.
"""

import asyncio
import functools
import json
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATATYPES = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}
_TICKS = 100.0  # of a second, in which /proc/PID/stat counts; sysconf says so on every Linux


@dataclass(frozen=True)
class Caller:
    """One connection.

    Attributes:
        requests: whole HTTP requests, sent in turn.
        every: seconds from one request to the next; None sends the next one as soon as the last is answered.
        group: the name under which its times are counted.
    """

    requests: tuple[bytes, ...]
    every: float | None = None
    group: str = ""


@dataclass
class Outcome:
    """What callers saw.

    Attributes:
        seconds: from the first request to the last answer.
        callers: processor seconds of the callers' process.
        server: processor seconds of the server's process.
        codes: number of answers by HTTP status; 0 counts requests that got none.
        times: seconds of each answered request, by group.
        faults: the first bodies of answers other than 200.
    """

    seconds: float = 0.0
    callers: float = 0.0
    server: float = 0.0
    codes: Counter[int] = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Requests that got their answer."""
        return self.codes[200]

    def quantile(self, share: float, group: str = "") -> float:
        """Milliseconds within which this share of a group's requests was answered."""
        return 1e3 * float(np.quantile(self.times[group], share)) if self.times.get(group) else float("nan")


def http_request(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    return (
        "\r\n".join([*lines, *(f"{name}: {value}" for name, value in (headers or {}).items()), "", ""]).encode() + body
    )


def infer_request(model: str, inputs: Mapping[str, NDArray[Any]], *, binary: bool = True) -> bytes:
    """An infer call of the Open Inference Protocol: binary tensors both ways, or JSON both ways."""
    told, raw = [], b""
    for name, array in inputs.items():
        tensor: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": DATATYPES[str(array.dtype)]}
        own = _bytes(array)
        if binary:
            raw += own
            tensor["parameters"] = {"binary_data_size": len(own)}
        else:
            tensor["data"] = [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]
        told.append(tensor)
    head = json.dumps({"inputs": told, "parameters": {"binary_data_output": binary}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {"Content-Type": "application/json"}
    return http_request(f"/v2/models/{model}/infer", head + raw, headers)


def _bytes(array: NDArray[Any]) -> bytes:
    if array.dtype != object:
        return np.ascontiguousarray(array).tobytes()
    return b"".join(len(text).to_bytes(4, "little") + text for text in array.reshape(-1))


def call(port: int, callers: Sequence[Caller], seconds: float, *, pid: int) -> Outcome:
    """What callers see in so many seconds; a request that was sent is waited for.

    Args:
        port: of the server on this machine.
        callers: each has a connection of its own.
        seconds: for which they send.
        pid: the server's process.
    """
    words = [sys.executable, str(Path(__file__).resolve())]
    done = subprocess.run(words, input=pickle.dumps((port, list(callers), seconds, pid)), capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    outcome: Outcome = pickle.loads(done.stdout)  # our own process wrote it
    return outcome


def processor_seconds_of(pid: int) -> float:
    """Processor seconds that a process has taken with all its threads."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


class _Connection(asyncio.Protocol):
    """A caller at work: it sends, waits for the whole answer, and sends again."""

    def __init__(self, caller: Caller, outcome: Outcome, end: float, first: float) -> None:
        self._caller, self._outcome, self._end = caller, outcome, end
        self._due, self._number, self._waiting = first, 0, False
        self._got, self._whole, self._chunked, self._ends = bytearray(), 0, False, False
        self._times = outcome.times.setdefault(caller.group, [])
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._whole:
            head = self._got.find(b"\r\n\r\n")
            if head < 0:
                return
            lines = bytes(self._got[:head]).lower().split(b"\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            self._chunked, self._ends = b"transfer-encoding: chunked" in lines, b"connection: close" in lines
            self._whole = head + 4 + length
        if self._chunked:
            self._skip_chunks()
        if not self._chunked and len(self._got) >= self._whole:
            self._answered()

    def _skip_chunks(self) -> None:
        """Move the answer's end behind the chunks that are here, as far as the empty one."""
        while (line := self._got.find(b"\r\n", self._whole)) >= 0:
            size = int(self._got[self._whole : line].partition(b";")[0], 16)
            if len(self._got) < line + 4 + size:
                return
            self._whole, self._chunked = line + 4 + size, size > 0
            if not size:
                return

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._outcome.codes[0] += 1
            waited = time.perf_counter() - self._due
            self._outcome.faults.append(f"{self._caller.group}: no answer in {waited:.1f} s ({error})")
        if not self.done.done():
            self.done.set_result(None)

    def _answered(self) -> None:
        code = int(self._got[9:12])
        self._outcome.codes[code] += 1
        if code == 200:
            self._times.append(time.perf_counter() - self._due)
        elif len(self._outcome.faults) < 5:
            self._outcome.faults.append(self._got[: self._whole].decode(errors="replace")[-300:])
        del self._got[: self._whole]
        self._whole, self._waiting = 0, False
        self._next()

    def _next(self) -> None:
        now = time.perf_counter()
        if self._caller.every is None:
            self._due = now
        elif self._number:
            self._due += self._caller.every
        if self._ends or max(self._due, now) >= self._end:
            self._transport.close()
            return
        if self._due > now:
            asyncio.get_running_loop().call_later(self._due - now, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if self._transport.is_closing():
            return
        self._waiting = True
        self._transport.write(self._caller.requests[self._number % len(self._caller.requests)])
        self._number += 1


def _same(connection: _Connection) -> _Connection:
    return connection


async def _run(port: int, callers: list[Caller], seconds: float, pid: int) -> Outcome:
    outcome = Outcome()
    begin, processor, server = time.perf_counter(), time.process_time(), processor_seconds_of(pid)
    connections = []
    for number, caller in enumerate(callers):
        first = begin + (caller.every or 0.0) * number / len(callers)  # paced callers do not all call at once
        connection = _Connection(caller, outcome, begin + seconds, first)
        await asyncio.get_running_loop().create_connection(functools.partial(_same, connection), "127.0.0.1", port)
        connections.append(connection.done)
    await asyncio.gather(*connections)
    outcome.seconds, outcome.callers = time.perf_counter() - begin, time.process_time() - processor
    outcome.server = processor_seconds_of(pid) - server
    return outcome


def main() -> None:
    """Read a plan on stdin, call, and write the outcome on stdout."""
    sys.stdout.buffer.write(pickle.dumps(asyncio.run(_run(*pickle.loads(sys.stdin.buffer.read())))))


if __name__ == "__main__":
    import callers  # what is pickled belongs to this name, not to __main__

    callers.main()
