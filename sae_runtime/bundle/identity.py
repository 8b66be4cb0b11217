"""Which file it was: a file is known again by what the file system says of it, without reading it."""

import os
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """Of a file: writing changes its size or times, and a file that takes its place has another inode."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int  # a copy may set the time of its content, but not this one


def identity(path: Path | str) -> Identity | None:
    """The identity of the file at a path, or of the file that it links to; None: there is none.

    >>> _ = Path("a.txt").write_text("abc")
    >>> before = identity(Path("a.txt"))
    >>> before == identity(Path("a.txt")), identity(Path("b.txt"))
    (True, None)
    >>> _ = Path("a.txt").write_text("wxyz")
    >>> before == identity(Path("a.txt"))
    False
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
