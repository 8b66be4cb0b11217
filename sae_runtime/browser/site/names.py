"""The names of features: what lists and the search of a site show of each."""

from pathlib import Path
from typing import Any

from sae_runtime.browser.site.shards import json_bytes, write_json

MOST = 8192  # features of a file
_BYTES = 2_000_000  # of a file, about
TOKENS = 5


class Names:
    """Writes names into files, each a table of columns.

    Attributes:
        firsts: the first feature of each file so far.
    """

    def __init__(self, folder: Path) -> None:
        """Begin the files in a new folder."""
        folder.mkdir()
        self._folder = folder
        self.firsts: list[int] = []
        self._first = self._rows = self._bytes = 0
        self._columns: dict[str, list[Any]] = {}

    def put(self, feature: int, label: str | None, tokens: list[str], density: Any, largest: Any) -> None:
        """Add a feature; features come in order."""
        size = len(json_bytes([label, tokens]))
        if self._rows and (self._rows == MOST or self._bytes + size > _BYTES):
            self.done()
        if not self._rows:
            self._first, self._bytes = feature, 0
            self._columns = {name: [] for name in ("label", "tokens", "density", "max")}
            self.firsts.append(feature)
        for column, value in zip(self._columns.values(), (label, tokens, density, largest), strict=True):
            column.append(value)
        self._rows += 1
        self._bytes += size

    def done(self) -> None:
        """Write what waits."""
        if self._rows:
            place = self._folder / f"{len(self.firsts) - 1:04}.json"
            write_json(place, {"first": self._first, **self._columns})
            self._rows = 0
