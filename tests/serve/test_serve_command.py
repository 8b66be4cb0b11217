"""`sae-runtime serve` from its start to its end."""

import hmac
import http.client
import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import refused
from conftest import make_x
from running import asked, running_command

import sae_runtime
from sae_runtime.serve.http.keys import knows, stranger


def test_it_says_what_is_loaded_and_logs_no_contents(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("# ours\nkey-of-the-tests-of-32-characters\n\nanother-key-of-the-tests\n")
    with running_command(f"mine={bundle_of('mutual')}", "--api-key-file", keys, log=log) as (address, process):
        path = "/v2/models/mine.encode?secret=1"
        assert asked(address, "GET", path)[0] == 401
        headers = {"Authorization": "Bearer another-key-of-the-tests"}
        assert asked(address, "GET", path, headers=headers)[0] == 200
        assert asked(address, "GET", "/v2/x%1b[2J", headers=headers)[0] == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    text = log.read_text()
    assert "GET /v2/models/mine.encode 200" in text and "401" in text
    assert "secret" not in text and "key-of" not in text and "\x1b" not in text


def test_sigterm_under_load_loses_no_accepted_request(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    bundle, x = bundle_of("mutual"), make_x(3)
    _, values = sae_runtime.load(bundle, threads=1).encode_slots(x)
    tensor = {"name": "x", "datatype": "FP32", "shape": [3, 24], "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    wrong, answered, begun = list[object](), [0] * 8, threading.Barrier(9)

    def caller(number: int, port: int) -> None:
        begun.wait()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            while True:
                connection.request("POST", "/v2/models/mine.encode/infer", body)
                answer = connection.getresponse()
                outputs = {one["name"]: one["data"] for one in json.loads(answer.read())["outputs"]}
                if not np.array_equal(np.array(outputs["values"], np.float32), values.ravel()):
                    wrong.append(outputs)
                answered[number] += 1
                if answer.getheader("connection") == "close":  # the server tells that it ends
                    return
        except Exception as error:
            wrong.append(error)
        finally:
            connection.close()

    with running_command(f"mine={bundle}", "--no-access-log") as (address, process):
        port = int(address.rsplit(":", 1)[1])
        threads = [threading.Thread(target=caller, args=(number, port)) for number in range(8)]
        for thread in threads:
            thread.start()
        begun.wait()
        while min(answered) < 5 and not wrong:
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        for thread in threads:
            thread.join(30)
    assert not wrong and sum(answered) > 40


def test_what_cannot_be_served_is_one_sentence(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    bundle = bundle_of("mutual")
    refused("serve", tmp_path / "none", "--port", "0")
    (tmp_path / "empty").write_text("# none\n")
    assert "has no key" in refused("serve", bundle, "--port", "0", "--api-key-file", tmp_path / "empty")
    (tmp_path / "short").write_text("short\n")
    assert "at least 16" in refused("serve", bundle, "--port", "0", "--api-key-file", tmp_path / "short")
    assert "limit rows" in refused("serve", bundle, "--port", "0", "--max-rows", "-1")
    assert "version" in refused("serve", f"a={bundle}", f"a={bundle}", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in refused("serve", bundle, "--port", str(port))


@pytest.mark.parametrize(
    "given", [b"", b"Bearer", b"Bearer ", b"Bearer key", b"bearer second-key-of-16-bytesx", b"Basic =", b"Digest a"]
)
def test_wrong_keys_are_not_known(given: bytes) -> None:
    assert not knows([b"first-key-of-16-bytes", b"second-key-of-16-bytes"], given)
    assert not knows([b"first-key-of-16-bytes"], "Bearer \u00e9".encode())


def test_each_key_is_known_and_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, own = list[bytes](), hmac.compare_digest

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return own(known, given)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    known = [b"first-key-of-16-bytes", b"second-key-of-16-bytes"]
    assert all(knows(known, b"Bearer " + key) for key in known)
    assert compared == known * 2


def test_a_second_signal_ends_at_once_without_a_traceback(bundle_of: Callable[..., Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running_command(f"mine={bundle_of('mutual')}", log=log) as (_, process):
        process.send_signal(signal.SIGINT)
        while "ending" not in log.read_text():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert log.read_text().splitlines()[-2:] == ["ending", "ended at once"]


def test_names_that_begin_like_an_address_of_this_machine_are_none() -> None:
    assert stranger({b"host": b"127.evil.example:8080"}, ("localhost",)) is not None
    assert all(
        stranger({b"host": host}, ("localhost",)) is None for host in (b"127.0.0.1:80", b"[::1]:80", b"127.9.9.9")
    )
