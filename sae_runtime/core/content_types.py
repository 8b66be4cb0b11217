"""The types of the files of web pages, as a server tells them to a browser."""

from pathlib import PurePath

# Named here, since the tables of some machines have other types, and a browser runs no module of those.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}


def content_type(path: str | PurePath) -> str:
    """The type of a file by the suffix of its name.

    >>> content_type("code/main.js"), content_type("model.onnx")
    ('text/javascript; charset=utf-8', 'application/octet-stream')
    """
    return _TYPES.get(PurePath(path).suffix.lower(), "application/octet-stream")
