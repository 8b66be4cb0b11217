"""What slow clients, clients that leave, long work and full servers meet over HTTP."""

import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed_model import deploy
from running import asked, running

from sae_runtime.model import Model
from sae_runtime.sae import SAE
from sae_runtime.serve.http import app, server
from sae_runtime.serve.limits import Limits
from sae_runtime.serve.plane import Plane

ENCODE = "/v2/models/mine.encode/infer"


@pytest.fixture
def path(bundle_of: Callable[..., Path]) -> Path:
    return bundle_of("mutual")


def rows(number: int, **more: Any) -> bytes:
    x = {"name": "x", "datatype": "FP32", "shape": [number, 24], "data": [0.5] * (24 * number)}
    return json.dumps({"inputs": [x], **more}).encode()


def plane_of(path: Path, **limits: Any) -> Plane:
    return Plane.open([f"mine={path}"], limits=Limits(**limits), merge=False)


@contextlib.contextmanager
def sending(address: str, data: bytes) -> Iterator[socket.socket]:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        yield connection


def head(length: int, path: str = ENCODE) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


class Blocked:
    """Holds up the calls of a method of `SAE` until it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        own, self.goes_on, self.calls = getattr(SAE, name), threading.Event(), 0

        def wait(*given: Any, **named: Any) -> Any:
            self.calls += 1
            self.goes_on.wait(20)
            return own(*given, **named)

        monkeypatch.setattr(SAE, name, wait)


def test_a_body_that_does_not_come_is_408_and_its_bytes_are_free_again(path: Path) -> None:
    with running(plane_of(path, seconds=0.3)) as address:
        for sent in (b"", b"{", b"{" * 9):
            with sending(address, head(10) + sent) as connection:
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                told = answer.read()
                assert answer.status == 408 and b"in time" in told and answer.getheader("connection") == "close"
        assert asked(address, "POST", ENCODE, rows(1))[0] == 200


@pytest.mark.parametrize("drips", [False, True])
def test_headers_that_do_not_come_end_the_connection(path: Path, drips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SECONDS", 0.3)
    with running(plane_of(path)) as address, sending(address, b"GET /v2 HTTP/1.1\r\nA: ") as connection:
        connection.settimeout(0.05)
        end, ended = time.monotonic() + 20, False
        while not ended:
            assert time.monotonic() < end
            try:
                if drips:
                    connection.sendall(b"a")
                ended = connection.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert asked(address, "GET", "/v2")[0] == 200


def test_work_that_takes_too_long_is_504_while_it_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plane, blocked = plane_of(path, seconds=2.0), Blocked(monkeypatch, "encode_batch")
    with running(plane) as address:
        status, told, _ = asked(address, "POST", "/v2/models/mine.encode_batch/infer", rows(3))
        assert status == 504 and b"in its time" in told and not blocked.goes_on.is_set() and blocked.calls == 1
        assert asked(address, "POST", ENCODE, rows(3))[0] == 200
        blocked.goes_on.set()
        until(lambda: plane.admission.waiting == 0)
        assert asked(address, "POST", "/v2/models/mine.encode_batch/infer", rows(3))[0] == 200


def test_a_caller_may_wait_for_less(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = Blocked(monkeypatch, "encode_slots")
    with running(plane_of(path)) as address:
        assert asked(address, "POST", ENCODE, rows(1, parameters={"timeout": 1000}))[0] == 504
        blocked.goes_on.set()


def test_a_full_server_says_when_to_come_again_and_work_of_who_left_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, blocked = plane_of(path, waiting=3), Blocked(monkeypatch, "encode_slots")
    with running(plane) as address:
        body = rows(2)
        connections = [sending(address, head(len(body)) + body) for _ in range(3)]
        for connection in connections:
            connection.__enter__()
        until(lambda: plane.admission.waiting == 3 and blocked.calls == 1)
        status, told, headers = asked(address, "POST", ENCODE, body)
        assert (status, headers["retry-after"]) == (503, "1") and b"try again" in told
        assert asked(address, "GET", "/v2/health/ready")[0] == 200
        for connection in connections:
            connection.__exit__(None, None, None)
        until(lambda: plane.admission.waiting == 0)
        blocked.goes_on.set()
        assert asked(address, "POST", ENCODE, body)[0] == 200
        assert blocked.calls == 2  # what waited behind the first was not computed


def test_a_body_that_is_here_and_too_large_is_refused_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_PATIENCE", 60.0)  # for the rest of a body, and here is none
    with running(plane_of(path, waiting_bytes=1 << 20, body=1 << 16)) as address:
        packed = gzip.compress(bytes(1 << 20))
        assert asked(address, "POST", ENCODE, packed, {"Content-Encoding": "gzip"})[0] == 413


def test_bodies_that_are_held_have_a_limit_in_all(path: Path) -> None:
    with running(plane_of(path, waiting_bytes=1 << 20, body=1 << 20)) as address:
        body = rows(1).ljust(600_000)
        with sending(address, head(len(body)) + body[:-1]):
            until(lambda: asked(address, "POST", ENCODE, body)[0] == 503)
            assert asked(address, "POST", ENCODE, body)[2]["retry-after"] == "1"
            assert asked(address, "POST", ENCODE, rows(1))[0] == 200
        until(lambda: asked(address, "POST", ENCODE, body)[0] == 200)


def test_long_texts_are_counted_and_read_beside_the_event_loop(
    bundle_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, threads = deploy(tmp_path / "model", "bert", {"bundle": bundle_of("mutual")}), list[bool]()
    plane, own, goes_on = Plane.open([f"model={folder}"]), Model.windows, threading.Event()

    def windows(self: Model, texts: Any, *given: Any) -> Any:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            threads.append(True)
        return own(self, texts, *given)

    def read(*given: Any, **named: Any) -> Any:
        goes_on.wait(20)
        raise ValueError("enough")

    monkeypatch.setattr(Model, "windows", windows)
    monkeypatch.setattr(Model, "read", read)
    text = "w1 " * 2000
    one = json.dumps({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}).encode()
    other = json.dumps({"model": "model", "input": [text]}).encode()
    with running(plane) as address:
        for path, body in (("/v2/models/model.features/infer", one), ("/v1/features", other)):
            goes_on.clear()
            with sending(address, head(len(body), path) + body):
                until(lambda: plane.admission.waiting_bytes > len(text))
            goes_on.set()
            until(lambda: plane.admission.waiting_bytes == 0)
    assert not threads
