"""Pages in a real Chromium, each watched for what no page of ours may do.

A watched page may not write a warning or an error to the console, let an exception escape, ask for anything beyond
127.0.0.1, get a status of 400 or above, break its own content security policy, start a download, open a window or a
dialog, or run the code of hostile data, which sets `window.pwned`. The fixture `open_page` fails a test whose page did
any of it; a test that expects some of it says so by `expected`.
"""

import contextlib
import re
import shutil
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from site_host import Host, hosted

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Route, sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 20
# Names that do not exist resolve to nothing, so that even what no route sees finds no other machine.
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--disable-webrtc"]
# Workers have no document, so the page alone reports a broken policy; a worker's stands in the console.
WATCHER = """
document.addEventListener("securitypolicyviolation", (event) =>
  window.violationOfPolicy(`${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
"""


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Watch:
    """What the pages of one context did that they may not."""

    def __init__(self, context: BrowserContext, expected: Sequence[str], downloads: bool) -> None:
        self.seen: list[str] = []
        self.requests: list[str] = []
        self.expected = [re.compile(one) for one in expected]
        self.downloads = downloads
        context.route("**/*", self._route)
        context.expose_function("violationOfPolicy", lambda broken: self.seen.append(f"policy: {broken}"))
        context.add_init_script(WATCHER)
        context.on("request", lambda request: self._request(request.url))
        context.on("response", lambda answer: self._status(answer.status, answer.url))
        context.on("console", self._console)
        context.on("weberror", lambda error: self.seen.append(f"exception: {error.error}"))
        context.on("dialog", self._dialog)
        context.on("page", self._page)

    def violations(self) -> list[str]:
        """What was seen and not expected."""
        return [one for one in self.seen if not any(pattern.search(one) for pattern in self.expected)]

    def _page(self, page: Page) -> None:
        if page.opener() is not None:
            self.seen.append(f"window: {page.url}")
        page.on("download", lambda download: self._download(download.suggested_filename))
        page.on("websocket", lambda socket: self._request(socket.url))
        page.on("crash", lambda _: self.seen.append("the page crashed"))

    def _dialog(self, dialog: Dialog) -> None:
        self.seen.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _download(self, name: str) -> None:
        if not self.downloads:
            self.seen.append(f"download: {name}")

    def _route(self, route: Route) -> None:
        if _here(route.request.url):
            route.continue_()
        else:
            route.abort()

    def _request(self, url: str) -> None:
        self.requests.append(url)
        if not _here(url):
            self.seen.append(f"left 127.0.0.1: {url[:300]}")

    def _status(self, status: int, url: str) -> None:
        if status >= 400:
            self.seen.append(f"status: {status} {url[:300]}")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.seen.append(f"console: {message.type}: {message.text[:1000]} ({message.location['url'][:200]})")


def _here(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.hostname == "127.0.0.1"


class Pages:
    """The pages of one test, and the hosts of their folders."""

    def __init__(self, started: Browser) -> None:
        self._browser = started
        self._closing = contextlib.ExitStack()
        self._watches: dict[Page, Watch] = {}
        self._hosts: dict[tuple[Path, str, bool], Host] = {}

    def __call__(
        self,
        site: Path | str,
        route: str = "",
        *,
        prefix: str = "/",
        plain: bool = False,
        expected: Sequence[str] = (),
        downloads: bool = False,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        **context: Any,
    ) -> Page:
        """Open a folder, or the address of a running server, in a new context, which has no cache.

        Args:
            site: a folder, which is served on 127.0.0.1, or an address.
            route: what follows the address, as "#/sae/7".
            prefix: the path of the folder at its host.
            plain: let the host send no charset, and octet-stream for what it does not know.
            expected: patterns of what the page may do in this test, as r"status: 500".
            downloads: the page may start downloads.
            width: of the window, in pixels.
            height: of the window, in pixels.
            dark: prefer dark colours.
            context: further options of Playwright's `new_context`, as reduced_motion="reduce".
        """
        address = site if isinstance(site, str) else self.host(site, prefix, plain=plain).address
        options = {"viewport": {"width": width, "height": height}, "color_scheme": "dark" if dark else "light"}
        made = self._browser.new_context(**{**options, **context})
        made.set_default_timeout(SECONDS * 1000)
        made.grant_permissions(["clipboard-read", "clipboard-write"])
        self._closing.callback(made.close)
        watch = Watch(made, expected, downloads)
        page = made.new_page()
        self._watches[page] = watch
        page.goto(address + route)
        return page

    def host(self, folder: Path, prefix: str = "/", *, plain: bool = False) -> Host:
        """The host of a folder; a test puts faults into its `answers` before it opens a page."""
        key = (folder, prefix, plain)
        if key not in self._hosts:
            self._hosts[key] = self._closing.enter_context(hosted(folder, prefix, plain=plain))
        return self._hosts[key]

    def requests(self, page: Page) -> list[str]:
        """All addresses that a page, its workers and its sockets asked for."""
        return self._watches[page].requests

    def violations(self, page: Page) -> list[str]:
        """What a page did so far that it may not."""
        page.wait_for_timeout(100)  # for what the browser has not told yet
        ran = [f"hostile code ran: {one.evaluate('window.pwned')}" for one in page.frames if _pwned(one)]
        return self._watches[page].violations() + ran

    def take(self, page: Page) -> list[str]:
        """What a page did so far that it may not; the test goes on as if it had not."""
        taken = self.violations(page)
        self._watches[page].seen.clear()
        page.evaluate("delete window.pwned")
        return taken

    def close(self) -> list[str]:
        """Close all; give what the pages did that they may not."""
        try:
            return [one for page in self._watches if not page.is_closed() for one in self.violations(page)]
        finally:
            self._closing.close()


def _pwned(frame: Any) -> bool:
    return bool(frame.evaluate("window.pwned !== undefined"))


def until(page: Page, script: str, argument: Any = None, seconds: float = SECONDS) -> Any:
    """The value of an expression or function in the page, once it is true.

    Playwright's `wait_for_function` evaluates text, which the page's content security policy forbids.
    """
    end = time.monotonic() + seconds
    while not (value := page.evaluate(script, argument)):
        if time.monotonic() > end:
            pytest.fail(f"in {seconds} s this never held: {script}; the page shows: {page.inner_text('body')[:1500]}")
        page.wait_for_timeout(30)
    return value
