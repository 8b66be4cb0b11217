"""Photograph the pages of a site in Chromium: overview, a feature, search and try it, wide and narrow, light and dark.

python benchmarks/screenshots.py demo-out/site shots --feature 261 --images docs/images
"""

import shutil
import threading
from pathlib import Path
from urllib.parse import quote

import click
from playwright.sync_api import Browser, Page, sync_playwright

from sae_runtime.browser.site.site_server import address_of, site_server

WIDTHS = {"wide": 1280, "narrow": 390}
SCHEMES = ("light", "dark")
SECONDS = 120  # until a model has come and read a text


@click.command(help=__doc__)
@click.argument("site", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--sae", default="mutual_choice", show_default=True, help="name of the SAE")
@click.option("--feature", default=0, help="the feature that is shown and edited")
@click.option("--strength", default=17.0, help="what the feature is set to")
@click.option("--text", default="Open the file and read the first line of it.", help="what is typed")
@click.option("--images", type=click.Path(path_type=Path), help="folder of the documents' pictures")
def main(site: Path, out: Path, sae: str, feature: int, strength: float, text: str, images: Path | None) -> None:
    """Write the pictures into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    pages = {
        "overview": f"#/{sae}",
        "feature": f"#/{sae}/{feature}",
        "search": f"#/{sae}/search?q=file",
        "try": f"#/{sae}/try?text={quote(text)}&edits=set:{feature}:{strength:g}",
    }
    with site_server(site) as server, sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in SCHEMES:
            for size, width in WIDTHS.items():
                for name, route in pages.items():
                    page = opened(browser, address_of(server) + route, scheme, width)
                    if name == "try":
                        loaded(page)
                    page.screenshot(path=out / f"{name}-{size}-{scheme}.png", full_page=True)
                    page.context.close()
        for name, file in (("try", "browser.png"), ("feature", "browser-feature.png")):
            if images is None:
                break
            page = opened(browser, address_of(server) + pages[name], "light", 1160, height=1040)
            if name == "try":
                loaded(page)
            page.screenshot(path=images / file)
            click.echo(f"{file}: {(images / file).stat().st_size:,} bytes")
            page.context.close()
        browser.close()
        server.shutdown()
    click.echo(f"{len(list(out.glob('*.png')))} pictures in {out}")


def opened(browser: Browser, address: str, scheme: str, width: int, height: int = 900) -> Page:
    """A page that has shown its content."""
    context = browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": height}
    )
    page = context.new_page()
    page.on("pageerror", lambda error: click.echo(f"{address}: {error}", err=True))
    page.on("console", lambda said: click.echo(f"{address}: {said.text}", err=True) if said.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("main h1")
    page.wait_for_timeout(500)
    for _ in range(20):  # names of other features come when they are seen
        page.mouse.wheel(0, height)
        page.wait_for_timeout(50)
    page.evaluate("scrollTo(0, 0)")
    return page


def loaded(page: Page) -> None:
    """Load the model, and wait until the text is read and its neighbours are shown."""
    page.get_by_role("button", name="Load the model").click()
    page.wait_for_selector("[role=listbox] [role=option]", timeout=SECONDS * 1000)
    page.wait_for_selector(".ranks li", timeout=SECONDS * 1000)
    page.wait_for_timeout(1000)


if __name__ == "__main__":
    main()
