"""Waiting until a page of a site stands in the browser."""

from typing import Any

from watched_pages import until


def shown(page: Any, address: str = "") -> None:
    """Wait until the page of this address, "#/sae/7", or of the one that the browser has, stands there whole."""
    until(page, "(hash) => document.getElementById('main').dataset.shown === (hash || location.hash)", address)
