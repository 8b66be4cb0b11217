"""The page: what it may run, and that nothing of what it shows is HTML."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from conftest import make_x
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sae_runtime.serve.catalogue import open_all
from sae_runtime.serve.http import page
from sae_runtime.serve.live import Live
from sae_runtime.serve.plane import Plane

pytestmark = pytest.mark.usefixtures("one_thread")
ASSETS = files("sae_runtime.serve.http").joinpath("assets")
SHARED = files("sae_runtime.browser").joinpath("assets/shared")
SCRIPTS = {file.name: file.read_text() for of in (ASSETS, SHARED) for file in of.iterdir() if file.name.endswith(".js")}
STYLES = [file.read_text() for of in (ASSETS, SHARED) for file in of.iterdir() if file.name.endswith(".css")]


@pytest.fixture
def plane(bundle_of: Callable[..., Path]) -> Iterator[Plane]:
    loaded = open_all([f"one={bundle_of('mutual')}"])
    made = Plane(loaded, watcher=Live(loaded))
    yield made
    made.close()


@pytest.fixture
def client(plane: Plane) -> TestClient:
    return TestClient(Starlette(routes=page.routes(plane)))


class Tags(HTMLParser):
    """Tags, with their attributes, and text inside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_every_part_says_what_may_run(client: TestClient) -> None:
    for path in ("/", "/page/page.css", "/page/page.js", "/page/shared/elements.js", "/page/models"):
        answer = client.get(path)
        assert answer.status_code == 200
        rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_script_or_style_of_its_own_and_nothing_from_elsewhere() -> None:
    tags = Tags()
    tags.feed(ASSETS.joinpath("page.html").read_text())
    for tag, attributes in tags.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert tag != "style"
        for name in ("src", "href"):
            assert attributes.get(name, "/").startswith(("/page/", "data:,", "/")), attributes  # type: ignore[union-attr]
            assert not attributes.get(name, "/").startswith("//")  # type: ignore[union-attr]
    assert [one for tag, one in tags.tags if tag == "script"] == [{"src": "/page/page.js", "type": "module"}]
    assert len(STYLES) == 2 and not [style for style in STYLES if re.search(r"url\(|@import", style)]


def test_scripts_import_what_is_served(client: TestClient) -> None:
    for name, script in SCRIPTS.items():
        folder = "/page/" if ASSETS.joinpath(name).is_file() else "/page/shared/"
        for path in re.findall(r'from "\./([^"]+)"', script):
            assert client.get(folder + path).headers["content-type"].startswith("text/javascript"), (name, path)


def test_scripts_make_no_html_and_run_no_strings() -> None:
    html = "innerHTML|outerHTML|insertAdjacentHTML|document\\.write|DOMParser|srcdoc"
    forbidden = f"{html}|\\beval\\b|new Function|https?://(?!127\\.0\\.0\\.1)"
    for name, script in SCRIPTS.items():
        assert not re.search(forbidden, script), name
        assert not re.search("localStorage|sessionStorage|document\\.cookie", script), "a key is kept nowhere"


def test_ids_that_scripts_ask_for_are_in_the_page() -> None:
    tags = Tags()
    tags.feed(ASSETS.joinpath("page.html").read_text())
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    asked = {name for script in SCRIPTS.values() for name in re.findall(r'\$\("([a-z-]+)"\)', script)}
    assert len(asked) > 30 and asked <= set(ids)
    labelled = {attributes.get("for") for tag, attributes in tags.tags if tag == "label"} - {None}
    assert labelled <= set(ids)


def test_what_is_loaded(client: TestClient, plane: Plane) -> None:
    plane.infer("one.encode", {"x": make_x(7)})
    (model,) = client.get("/page/models").json()["models"]
    (sae,) = model["saes"]
    assert (model["name"], model["kind"], "encode" in model["operations"]) == ("one", "bundle", True)
    assert (sae["d_in"], sae["d_sae"], sae["recent"]["tokens"], sae["labels"]) == (24, 150, 7, 0)


def test_open_paths_say_nothing_of_what_is_loaded(client: TestClient) -> None:
    paths = ["/", *(f"/page/{name}" for name in ("page.css", "page.js", "shared/look.css", "shared/server.js"))]
    for path in paths:
        assert page.is_open(path) and "one.encode" not in client.get(path).text
    assert not page.is_open("/page/models") and not page.is_open("/page/page.html")


def test_figures_that_are_no_numbers_of_json(client: TestClient, plane: Plane, monkeypatch: Any) -> None:
    from sae_runtime.serve.figures import Figures

    watched = plane.watcher.saes["one", 1, "one"]  # type: ignore[union-attr]
    monkeypatch.setattr(watched, "_expected", Figures(l0=float("nan"), explained_variance=float("-inf")))
    (model,) = client.get("/page/models").json()["models"]
    assert model["saes"][0]["expected"]["l0"] is None
