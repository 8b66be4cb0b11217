"""Time the pages of a site in Chromium, from the address to what a person sees.

python benchmarks/browse_pages.py demo-out/site
python benchmarks/browse_pages.py demo-out/site --features 131072 --wide /tmp/wide

A page counts as shown when it stands in the document whole and the browser has drawn two frames after that. "cold" is
a new browser profile without any cache, and so counts the connection, the page, its code and its data; "next" is the
key n on a feature's page; "search" is from the last letter to the end of the search, of every shard. The server is that
of `sae-runtime browse --open`. "longest task" is the longest time in which the page could not answer. With --wide, the
first SAE is repeated under other numbers up to so many features, into a folder, and that site is timed.
"""

import json
import random
import shutil
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

import click
from playwright.sync_api import Browser, Page, sync_playwright

from sae_runtime.browser.site.names import TOKENS, Names
from sae_runtime.browser.site.shards import Shards, json_bytes, write_json
from sae_runtime.browser.site.site_server import address_of, site_server

KEPT = 8  # contexts of a repeated feature
SHARD = 512_000  # bytes, as of written sites
# The time at which main says that a page is whole, and that of the second frame after it; and the longest task.
WATCH = """
window.times = [];
window.longest = 0;
new MutationObserver((changes) => {
  if (!changes.some((one) => one.attributeName === "data-shown")) return;
  requestAnimationFrame(() => requestAnimationFrame(() => window.times.push(performance.now())));
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["data-shown"] });
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
}).observe({ type: "longtask" });
"""
ASK = """
async (query) => {
  const field = document.getElementById("query"), began = performance.now();
  field.value = query;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  for (;;) {
    await new Promise((go) => setTimeout(go, 4));
    const told = document.querySelector("main .search > .note, main .note[role=status]")?.textContent ?? "";
    if (told.includes(`“${query}”`)) return { ms: performance.now() - began, told };
  }
}
"""


@click.command(help=__doc__)
@click.argument("site", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", default=15, show_default=True, help="of each page")
@click.option("--wide", type=click.Path(path_type=Path), help="make a site with more features there, and time that")
@click.option("--features", default=131_072, show_default=True, help="of the wide site")
@click.option("--query", "queries", multiple=True, default=("file", "file name", "zzzz"), help="what is searched for")
def main(site: Path, runs: int, wide: Path | None, features: int, queries: tuple[str, ...]) -> None:
    """Print a table."""
    if wide is not None:
        widen(site, wide, features)
        site = wide
    sae = json.loads((site / "site.json").read_text())["saes"][0]
    click.echo(f"{site}: {sae['d_sae']:,} features of {sae['name']}, {runs} runs\n")
    click.echo("| what | median ms | worst ms | longest task ms | requests | kB |\n|---|---|---|---|---|---|")
    with site_server(site) as server, sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        address = address_of(server)
        chosen = random.Random(0).sample(range(sae["d_sae"] - 1), runs)
        cold(browser, address, [f"#/{sae['name']}"] * runs, "overview, cold")
        cold(browser, address, [f"#/{sae['name']}/{feature}" for feature in chosen], "a feature, cold")
        steps(browser, address, sae["name"], chosen)
        for query in queries:
            searches(browser, address, sae["name"], query)
        browser.close()
        server.shutdown()


def cold(browser: Browser, address: str, routes: list[str], name: str) -> None:
    """A line about pages that a new profile opens."""
    times, longest, requests, size = [], 0.0, 0, 0
    for route in routes:
        page = opened(browser)
        page.goto(address + route)
        times.append(shown(page, 1))
        longest = max(longest, page.evaluate("longest"))
        loaded = "performance.getEntries().filter((one) => one.encodedBodySize !== undefined)"
        requests = page.evaluate(f"{loaded}.length")
        size = page.evaluate(f"{loaded}.reduce((sum, one) => sum + one.encodedBodySize, 0)")
        page.context.close()
    line(name, times, longest, requests, size)


def steps(browser: Browser, address: str, sae: str, chosen: list[int]) -> None:
    """Lines about the key n: into a shard that is there already, and to features far away, by their address."""
    page = opened(browser)
    page.goto(f"{address}#/{sae}/0")
    shown(page, 1)
    for name, go in (("next, by the key n", None), ("another feature, by its address", chosen)):
        times = []
        for step in chosen:
            page.wait_for_timeout(150)  # a person looks at a page, and the neighbouring shard comes
            page.evaluate("window.times.length = 0; window.began = performance.now();")
            if go is None:
                page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'n' }))")
            else:
                page.evaluate("(to) => { location.hash = to; }", f"#/{sae}/{step}")
            times.append(shown(page, 1) - page.evaluate("window.began"))
        line(name, times, page.evaluate("longest"))
    page.context.close()


def searches(browser: Browser, address: str, sae: str, query: str) -> None:
    """Lines about a search: the first one, which fetches the names, and one with them in memory."""
    page = opened(browser)
    page.goto(f"{address}#/{sae}/search")
    shown(page, 1)
    for name in ("the names fetched", "again"):
        page.evaluate("window.longest = 0")
        found = page.evaluate(ASK, query)
        page.wait_for_timeout(100)
        line(f"search {query!r}, {name}: {found['told']}", [found["ms"]], page.evaluate("longest"))
        page.evaluate(ASK, "qqqqq")
    page.context.close()


def opened(browser: Browser) -> Page:
    """An empty page of a new profile."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.add_init_script(WATCH)
    return page


def shown(page: Page, count: int) -> float:
    """The time at which a page was drawn, in milliseconds from the page's beginning."""
    while page.evaluate("window.times.length") < count:
        page.wait_for_timeout(5)
    return float(page.evaluate("window.times.at(-1)"))


def line(name: str, times: list[float], longest: float, requests: int | str = "", size: int | str = "") -> None:
    """Print a row of the table."""
    bytes_read = f"{size / 1000:,.0f}" if isinstance(size, int) else ""
    click.echo(
        f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} | {longest:.0f} | {requests} | {bytes_read} |"
    )


def widen(site: Path, out: Path, features: int) -> None:
    """Write a site whose only SAE has the features of another one's first SAE again and again."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(site, out, ignore=shutil.ignore_patterns("data", "model"))
    told = json.loads((site / "site.json").read_text())
    sae = told["saes"][0] | {"d_sae": features}
    known = json.loads((site / sae["folder"] / "overview.json").read_text())
    rows: list[dict[str, Any]] = []
    for path in sorted((site / sae["folder"] / "features").glob("*.json")):
        rows += json.loads(path.read_text())["features"]
    folder = out / sae["folder"]
    folder.mkdir(parents=True)
    names, shards = Names(folder / "names"), Shards(folder / "features", digits=5, size=SHARD)
    chance = random.Random(0)
    for feature in range(features):
        row = dict(rows[feature % len(rows)])
        row |= {"feature": feature, "contexts": row["contexts"][:KEPT]}
        for others in ("neighbours", "together"):
            if row[others] is not None:
                row[others] = [[chance.randrange(features), value, *more] for _, value, *more in row[others]]
        shards.put(feature, json_bytes(row))
        label = None if row["source"] == "top tokens" else row["label"]
        names.put(feature, label, [text for text, *_ in row["tokens"][:TOKENS]], row["density"], row["max"])
    names.done()
    shards.done()
    write_json(
        folder / "overview.json",
        known | {"d_sae": features, "shards": {"features": shards.firsts, "names": names.firsts}},
    )
    write_json(out / "site.json", told | {"saes": [sae], "model": None})
    print(f"{out}: {len(shards.firsts):,} shards of features, {len(names.firsts)} of names", file=sys.stderr)


if __name__ == "__main__":
    main()
