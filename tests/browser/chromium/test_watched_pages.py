"""The watch over pages sees each thing that a page may not do, and nothing in a page that does none of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from site_host import Answer
from watched_pages import Pages, until

POLICY = "default-src 'none'; script-src 'self'; connect-src *; worker-src 'self'"
BEGINNING = f'<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
OF_LINK = "const link = document.createElement('a'); link.textContent = 'link'; document.body.append(link);"
FAULTS = {
    "console: warning: oh": "console.warn('oh');",
    "console: error: oh": "console.error('oh');",
    "exception: oh": "setTimeout(() => { throw new Error('oh') });",
    "left 127.0.0.1: http://10.0.0.1/": "fetch('http://10.0.0.1/').catch(() => 0);",
    "left 127.0.0.1: ws://10.0.0.1/": "new WebSocket('ws://10.0.0.1/');",
    "left 127.0.0.1: http://example.com/": f"{OF_LINK} link.href = 'http://example.com/'; link.click();",
    "status: 404": "fetch('./nothing');",
    "policy: script-src-attr inline": "document.body.setAttribute('onclick', 'x()'); document.body.click();",
    "policy: style-src-attr inline": "document.body.setAttribute('style', 'color: red');",
    "dialog: oh": "setTimeout(() => alert('oh'));",
    "download: a.txt": f"{OF_LINK} link.href = 'main.js'; link.download = 'a.txt'; link.click();",
    "window: ": "opener || setTimeout(() => open('index.html'));",
    "hostile code ran: 1": "window.pwned = 1;",
}
OF_WORKERS = [one for one in FAULTS if one.startswith(("console", "exception", "status")) or "10.0.0.1" in one]


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    def give(script: str = "", worker: str = "") -> Path:
        (tmp_path / "index.html").write_text(f'{BEGINNING}<script type="module" src="main.js"></script><p>text</p>')
        (tmp_path / "main.js").write_text(f"{script}\ndocument.title = 'end';")
        (tmp_path / "worker.js").write_text(worker)
        return tmp_path

    return give


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_page_is_seen(open_page: Pages, folder_of: Callable[..., Path], fault: str) -> None:
    page = open_page(folder_of(FAULTS[fault]))
    page.wait_for_timeout(300)
    seen = open_page.take(page)
    assert any(one.startswith(fault) for one in seen), seen
    assert open_page.violations(page) == []


@pytest.mark.parametrize("fault", OF_WORKERS)
def test_fault_of_a_worker_is_seen(open_page: Pages, folder_of: Callable[..., Path], fault: str) -> None:
    page = open_page(folder_of("new Worker('./worker.js', { type: 'module' });", FAULTS[fault]))
    page.wait_for_timeout(300)
    seen = open_page.take(page)
    assert any(one.startswith(fault) for one in seen), seen


def test_good_page_has_no_violation(open_page: Pages, folder_of: Callable[..., Path]) -> None:
    page = open_page(folder_of("await fetch('./worker.js'); console.log('a line');"))
    assert until(page, "document.title === 'end'")
    assert open_page.violations(page) == []
    assert [one.rpartition("/")[2] for one in open_page.requests(page)] == ["", "main.js", "worker.js"]


def test_expected_fault_is_forgiven(open_page: Pages, folder_of: Callable[..., Path]) -> None:
    folder = folder_of("await fetch('./data.json');")
    open_page.host(folder).answers["data.json"] = Answer(status=500, body=b"no")
    page = open_page(folder, expected=["status: 500", "console: error: Failed to load resource"])
    assert until(page, "document.title === 'end'")


def test_host_below_a_prefix(open_page: Pages, folder_of: Callable[..., Path]) -> None:
    folder = folder_of()
    page = open_page(folder, "?a=1#/b", prefix="/x/y/site/", plain=True)
    assert until(page, "document.title === 'end'")
    assert page.evaluate("location.pathname + location.search + location.hash") == "/x/y/site/?a=1#/b"
    outside = page.evaluate("fetch('/main.js').then((answer) => answer.status)")
    assert outside == 404
    assert page.evaluate("fetch('/x/y/site/main.js').then((one) => one.headers.get('content-type'))") == (
        "application/javascript"
    )
    open_page.take(page)
