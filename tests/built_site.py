"""The site of the documents, built once for a run of the tests, and what its pages link to and load."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
_LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("object", "data")}


def build(folder: Path) -> str:
    """Build the site into a folder; gives what mkdocs said where it is an error or a warning, else nothing."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}"


class Page(HTMLParser):
    """What is in a page: anchors, addresses of links, and addresses of what a browser loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = set[str](), list[str](), list[str]()
        self.classes = set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        self.classes.update(given.get("class", "").split())
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "edit"):
            self.loaded.append(given.get("href", ""))
        self.loaded += [value for name, value in given.items() if (tag, name) in _LOADS]


class BuiltSite:
    """The pages of a built site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.html"))

    @functools.cache  # noqa: B019  (a site lives as long as a module of tests)
    def page(self, name: str) -> Page:
        """A page by its path, such as "guides/text.html"."""
        return Page((self.folder / name).read_text())

    def broken(self, name: str) -> Iterator[str]:
        """The links and loaded files of a page that are not there."""
        for address in [*self.page(name).links, *self.page(name).loaded]:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            file = (self.folder / name).parent / unquote(parts.path) if parts.path else self.folder / name
            if name == "404.html" and parts.path.startswith("/"):
                file = self.folder / unquote(parts.path).lstrip("/")
            file = file.resolve()
            reached = file / "index.html" if file.is_dir() else file
            if not reached.is_file():
                yield f"{name}: {address} does not exist"
            elif parts.fragment and reached.suffix == ".html":
                if unquote(parts.fragment) not in self.page(str(reached.relative_to(self.folder))).anchors | {"__skip"}:
                    yield f"{name}: {address} has no such anchor"

    def foreign(self, name: str) -> Iterator[str]:
        """What a page would load from another server."""
        for address in self.page(name).loaded:
            if urlsplit(address).netloc:
                yield f"{name}: {address}"
