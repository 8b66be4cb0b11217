"""Shards: JSON files of consecutive features, cut by their bytes."""

import json
from pathlib import Path
from typing import Any

MOST = 5_000_000  # bytes of a file of a site


def json_bytes(value: Any) -> bytes:
    r"""The JSON of a value without needless blanks, in UTF-8.

    >>> json_bytes({"label": "naïve", "max": 1.5})
    b'{"label":"na\xc3\xafve","max":1.5}'
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


class Shards:
    """Writes features into files of a folder, each with the features from `first` on.

    Attributes:
        firsts: the first feature of each file so far.
    """

    def __init__(self, folder: Path, *, digits: int, size: int) -> None:
        """Begin the files 0.json, 1.json, ... of about `size` bytes, whose numbers have at least so many digits."""
        folder.mkdir()
        self._folder, self._digits, self._size = folder, digits, size
        self._waiting: list[bytes] = []
        self._bytes = 0
        self.firsts: list[int] = []

    def put(self, feature: int, content: bytes) -> None:
        """Add a feature, whose JSON this is; features come in order."""
        if self._waiting and self._bytes + len(content) > self._size:
            self.done()
        if not self._waiting:
            self.firsts.append(feature)
        self._waiting.append(content)
        self._bytes += len(content) + 1

    def done(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        number = len(self.firsts) - 1
        begin = b'{"first":%d,"features":[' % self.firsts[-1]
        (self._folder / f"{number:0{self._digits}}.json").write_bytes(begin + b",".join(self._waiting) + b"]}")
        self._waiting, self._bytes = [], 0


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file of a site."""
    path.write_bytes(json_bytes(value))
