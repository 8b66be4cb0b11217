"""Regular files of at most a given size, opened without waiting: pipes, devices and folders are refused."""

import os
import stat
from io import BufferedReader
from pathlib import Path

LARGEST_JSON = 1 << 24  # bytes of a file of settings, a manifest or figures


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises:
        OSError: it does not exist or may not be read.
        ValueError: it is a folder, a pipe, a socket or a device; opening one of these could wait without end.

    >>> _ = Path("a.txt").write_text("abc")
    >>> with open_regular(Path("a.txt")) as file:
    ...     file.read()
    b'abc'
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is {_kind(path.stat().st_mode)}, expected a file; put the file itself there")
    # Should a pipe take its place now, the flag keeps the opening from waiting.
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is no regular file any more; put the file itself there")
    return file


def read_bytes(path: Path, *, most: int = LARGEST_JSON) -> bytes:
    """All bytes of a small regular file.

    Args:
        path: the file.
        most: largest size in bytes.

    Raises:
        OSError: it does not exist or may not be read.
        ValueError: it is no regular file, or is larger.

    >>> _ = Path("a.txt").write_text("abc")
    >>> read_bytes(Path("a.txt"))
    b'abc'
    >>> read_bytes(Path("a.txt"), most=2)
    Traceback (most recent call last):
    ValueError: a.txt has more than 2 bytes, too many for such a file; get a sound one
    """
    with open_regular(path) as file:
        read = b"" if os.fstat(file.fileno()).st_size > most else file.read(most + 1)
        if len(read) > most or (not read and os.fstat(file.fileno()).st_size):
            raise ValueError(f"{path} has more than {most:,} bytes, too many for such a file; get a sound one")
    return read


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
