"""Errors of a disk that is full, or that may not be written, name the path that could not be written."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def naming(path: Path | str, partial: Path | None = None) -> Iterator[None]:
    """Let an error of the disk in the block name a path, where it names none.

    Args:
        path: what the block writes.
        partial: what it writes first, under a hidden name that no message should show; the name of `path` takes its
            place.

    >>> with naming("sae.npy"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'sae.npy'
    """
    try:
        yield
    except OSError as error:
        if partial is not None and error.filename is not None:
            error.filename = str(error.filename).replace(str(partial), str(path))
        elif error.filename is None and error.errno in _OF_DISKS:
            error.filename = str(path)
        elif error.errno is None and len(error.args) == 1:
            text = str(error.args[0])
            text = text if partial is None else text.replace(str(partial), str(path))
            # numpy's tofile tells neither the reason nor the file.
            short = "requested and" in text and text.endswith("written")
            error.args = (f"{path} cannot be written ({text}); free space or write elsewhere" if short else text,)
        raise
