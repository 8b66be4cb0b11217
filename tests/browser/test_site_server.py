"""The server of `browse --open`: the files of one folder, for this computer's own address alone."""

import http.client
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPMessage
from pathlib import Path

import pytest

from sae_runtime.browser.site.site_server import address_of, site_server

Answer = tuple[int, HTTPMessage, bytes]
Ask = Callable[..., Answer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "code" / "deep").mkdir(parents=True)
    (site / ".hidden").mkdir()
    contents = {"index.html": "<!doctype html>", "code/main.js": "1", "code/a b.css": "p{}", "data.json": "{}"}
    contents |= {"model.wasm": "w", "weights.data": "d", ".hidden/x.txt": "secret"}
    for name, content in contents.items():
        (site / name).write_text(content)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "site-2").mkdir()
    (tmp_path / "site-2" / "index.html").write_text("secret")
    (site / "out.txt").symlink_to(tmp_path / "secret.txt")
    (site / "out").symlink_to(tmp_path)
    (site / "in.js").symlink_to(site / "code" / "main.js")
    (site / "loop.js").symlink_to(site / "loop.js")
    os.mkfifo(site / "pipe.js")
    return site


@pytest.fixture
def ask(folder: Path) -> Iterator[Ask]:
    with site_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        port = server.server_address[1]

        def asked(path: str, method: str = "GET", **headers: str) -> Answer:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers={"Host": f"127.0.0.1:{port}"} | named)
            answer = connection.getresponse()
            read = answer.status, answer.headers, answer.read()
            connection.close()
            return read

        yield asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/index.html?x=1", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/code/main.js", "text/javascript; charset=utf-8", b"1"),
        ("/code/a%20b.css", "text/css; charset=utf-8", b"p{}"),
        ("/data.json", "application/json", b"{}"),
        ("/model.wasm", "application/wasm", b"w"),
        ("/weights.data", "application/octet-stream", b"d"),
        ("/in.js", "text/javascript; charset=utf-8", b"1"),
    ],
)
def test_files_have_their_types_whatever_the_machine_says(ask: Ask, path: str, kind: str, content: bytes) -> None:
    status, headers, body = ask(path)
    assert (status, headers["Content-Type"], body) == (200, kind, content)
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-cache", "nosniff")


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/code/../../secret.txt", "/..%2fsecret.txt", "/..%5csecret.txt"),
        *("/../site-2/", "/out.txt", "/out/secret.txt", "/code", "/code/", "/code/deep/", "/loop.js", "/pipe.js"),
        *("/.hidden/x.txt", "//etc/passwd", "/code//main.js", "/C:/x", "/data.json::$DATA", "/%00", "/%ff", "/none"),
        *("/" + "a" * 5000, "http://127.0.0.1/../secret.txt", "/code/./main.js"),
    ],
)
def test_no_path_leads_out_of_the_folder_or_lists_it(ask: Ask, path: str) -> None:
    status, _, body = ask(path)
    assert (status, body) == (404, b"the site has no such file\n")


def test_head_has_the_headers_alone_and_other_methods_are_refused(ask: Ask) -> None:
    status, headers, body = ask("/data.json", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "2", b"")
    assert ask("/none", "HEAD")[0] == 404
    assert ask("/data.json", "POST")[0] == 501


def test_a_file_that_the_browser_has_is_not_sent_again(ask: Ask, folder: Path) -> None:
    _, headers, _ = ask("/data.json")
    known = {"If_None_Match": headers["ETag"]}
    assert ask("/data.json", **known)[::2] == (304, b"")
    assert ask("/data.json", If_None_Match=f'"other", W/{headers["ETag"]}')[0] == 304
    assert ask("/data.json", If_Modified_Since=headers["Last-Modified"])[0] == 304
    assert ask("/data.json", If_Modified_Since="no date")[0] == 200
    (folder / "data.json").write_text("{ }")
    assert ask("/data.json", **known)[::2] == (200, b"{ }")


def test_an_address_of_another_name_is_refused(ask: Ask) -> None:
    """A page of a name that leads to 127.0.0.1 reads no site."""
    assert ask("/", Host="evil.example:80")[0] == 403
    assert ask("/", Host="localhost:1")[0] == 200


def test_many_files_at_once(ask: Ask, folder: Path) -> None:
    for number in range(40):
        (folder / f"{number}.json").write_text(str(number) * 50_000)
    with ThreadPoolExecutor(8) as pool:
        bodies = [body for _, _, body in pool.map(lambda number: ask(f"/{number}.json"), range(40))]
    assert bodies == [(str(number) * 50_000).encode() for number in range(40)]


def test_a_browser_that_leaves_in_the_middle_is_no_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "large.data").write_bytes(bytes(1 << 24))
    with site_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for sent in (
            b"",
            b"GET / HT",
            b"GET /large.data HTTP/1.1\r\nHost: %b\r\n\r\n" % address_of(server)[7:-1].encode(),
        ):
            with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
                connection.sendall(sent)
                time.sleep(0.1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes by a reset
        time.sleep(0.3)
        server.shutdown()
        thread.join()
    assert capfd.readouterr() == ("", "")


def test_the_address_is_of_this_computer_and_a_taken_port_is_an_error(folder: Path) -> None:
    with site_server(folder) as server:
        assert address_of(server).startswith("http://127.0.0.1:")
        with pytest.raises(OSError, match="in use"):
            site_server(folder, server.server_address[1])
