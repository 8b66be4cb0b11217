"""The page, its code and the vendored libraries, as this package has them."""

import importlib.resources
import shutil
from importlib.resources.abc import Traversable
from pathlib import Path

INDEX = "index.html"


def copy_page(folder: Path) -> None:
    """Copy the page and its code into the folder of a site.

    >>> Path("new-site").mkdir()
    >>> copy_page(Path("new-site"))
    >>> Path("new-site/code/shared/elements.js").is_file()
    True
    """
    _copy(_assets() / "site", folder / "code")
    _copy(_assets() / "shared", folder / "code" / "shared")
    if (folder / "code" / INDEX).is_file():
        (folder / "code" / INDEX).rename(folder / INDEX)


def copy_libraries(folder: Path) -> None:
    """Copy the libraries that run a model in the page, and their licences."""
    _copy(_assets() / "vendor", folder / "vendor")


def _assets() -> Traversable:
    return importlib.resources.files("sae_runtime.browser") / "assets"


def _copy(source: Traversable, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for entry in source.iterdir():
        if entry.is_dir():
            _copy(entry, target / entry.name)
        else:
            with entry.open("rb") as old, (target / entry.name).open("wb") as new:
                shutil.copyfileobj(old, new)
