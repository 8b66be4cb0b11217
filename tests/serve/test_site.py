"""The site of the browser at /site/ of a server: its files and nothing else, open, while the models keep their keys."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import refused
from starlette.testclient import TestClient

from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.http.app import App
from sae_runtime.serve.http.site_files import check_site
from sae_runtime.serve.plane import Plane

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = b"key-of-the-tests-of-32-characters"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "site"
    for name, content in {
        "index.html": "<!doctype html><title>a site</title>",
        "site.json": '{"format": 1, "saes": [], "model": null}',
        "serve.json": "{}",
        "code/main.js": "export {};",
        "vendor/some.wasm": "\0asm",
        "data/a/names/0000.json": "{}",
        "model/graph.onnx.data": "0" * 200_000,
        ".hidden": "secret",
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(content)
    (tmp_path / "outside.txt").write_text("secret")
    (made / "link.txt").symlink_to(tmp_path / "outside.txt")
    (made / "up").symlink_to(tmp_path)
    (made / "within.txt").symlink_to(made / "index.html")
    return made


@pytest.fixture
def client(folder: Path, bundle_of: Callable[..., Path]) -> Iterator[TestClient]:
    plane = Plane(open_all([f"one={bundle_of('mutual')}"]))
    app = App(plane, keys=[KEY], site=check_site(folder))
    yield TestClient(app, headers={"host": "localhost"}, follow_redirects=False)
    plane.close()


def test_each_file_has_its_type_and_says_what_may_run(client: TestClient) -> None:
    kinds = {
        "": "text/html; charset=utf-8",
        "index.html": "text/html; charset=utf-8",
        "code/main.js": "text/javascript; charset=utf-8",
        "vendor/some.wasm": "application/wasm",
        "data/a/names/0000.json": "application/json",
        "model/graph.onnx.data": "application/octet-stream",
        "serve.json": "application/json",
    }
    for path, kind in kinds.items():
        answer = client.get(f"/site/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind), path
        rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == "'self' 'wasm-unsafe-eval'" and rules["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"


def test_the_page_learns_that_a_server_is_here(client: TestClient) -> None:
    assert client.get("/site/serve.json").json() == {"api": "/", "models": "/page/models"}
    assert client.get("/page/models", headers={"authorization": f"Bearer {KEY.decode()}"}).json()["site"] is True


def test_files_are_open_and_models_are_not(client: TestClient) -> None:
    assert client.get("/site/").status_code == client.get("/site/site.json").status_code == 200
    assert client.get("/site").headers["location"] == "site/"
    for path in ("/page/models", "/sites", "/v1/models"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "code",
        "code/",
        "data/a/names",
        "missing.js",
        ".hidden",
        "link.txt",
        "up/outside.txt",
        "../outside.txt",
        "%2e%2e/outside.txt",
        "code/..%2f..%2foutside.txt",
        "..%5coutside.txt",
        "%2fetc/passwd",
        "/etc/passwd",
        "code/main.js%00.html",
        "x" * 5000,
    ],
)
def test_there_is_no_listing_and_no_way_out(client: TestClient, path: str) -> None:
    answer = client.get(f"/site/{path}")
    assert answer.status_code in (401, 404) and "secret" not in answer.text and "main.js" not in answer.text


def test_what_a_browser_has_is_not_sent_again(client: TestClient, folder: Path) -> None:
    first = client.get("/site/model/graph.onnx.data")
    assert len(first.content) == 200_000
    again = client.get("/site/model/graph.onnx.data", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    (folder / "model/graph.onnx.data").write_text("1" * 200_001)
    changed = client.get("/site/model/graph.onnx.data", headers={"if-none-match": first.headers["etag"]})
    assert (changed.status_code, len(changed.content)) == (200, 200_001)
    head = client.head("/site/model/graph.onnx.data")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "200001", b"")
    assert client.post("/site/index.html").status_code == 405


def test_what_leads_to_nothing_but_a_file_of_the_site_is_sent(client: TestClient) -> None:
    assert client.get("/site/within.txt").text == client.get("/site/").text


def test_the_metrics_name_no_file(client: TestClient) -> None:
    client.get("/site/code/main.js")
    text = client.get("/metrics", headers={"authorization": f"Bearer {KEY.decode()}"}).text
    assert 'route="/site/{path:path}"' in text and "main.js" not in text


def test_a_server_without_a_site_has_none(bundle_of: Callable[..., Path]) -> None:
    plane = Plane(open_all([f"one={bundle_of('mutual')}"]))
    client = TestClient(App(plane), headers={"host": "localhost"})
    assert client.get("/site/").status_code == client.get("/site").status_code == 404
    assert client.get("/page/models").json()["site"] is False
    plane.close()


def test_what_is_no_site_is_refused_at_the_start(bundle_of: Callable[..., Path], folder: Path) -> None:
    bundle = bundle_of("mutual")
    said = refused("serve", bundle, "--port", "0", "--site", bundle)
    assert re.search("is no site: it has no site.json.*sae-runtime browse", said)
    assert "is no site" in refused("serve", bundle, "--port", "0", "--site", folder / "none")
    (folder / "site.json").write_text('{"format": 2}')
    assert "format 2" in refused("serve", bundle, "--port", "0", "--site", folder)
    (folder / "site.json").write_text("[")
    assert "not readable JSON" in refused("serve", bundle, "--port", "0", "--site", folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_no_regular_file_is_not_read(client: TestClient, folder: Path) -> None:
    os.mkfifo(folder / "pipe.js")
    assert client.get("/site/pipe.js").status_code == 404
