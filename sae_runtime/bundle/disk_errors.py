"""Errors of a disk that is full or broken, or that may not be written, name the path that could not be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path | str, partial: Path | None = None) -> Iterator[None]:
    """Let an error of the disk in the block name a path, where it names none, as those of write and fsync do not.

    An error of a connection is not one of the disk.

    Args:
        path: what the block writes.
        partial: what it writes first, under a hidden name that no message should show; the name of `path` takes its
            place.

    >>> with naming("sae.npy"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'sae.npy'
    """
    try:
        yield
    except OSError as error:
        if partial is not None and error.filename is not None:
            error.filename = str(error.filename).replace(str(partial), str(path))
        elif error.filename is None and error.errno is not None and not isinstance(error, ConnectionError):
            error.filename = str(path)
        elif error.errno is None and len(error.args) == 1:
            text = str(error.args[0])
            text = text if partial is None else text.replace(str(partial), str(path))
            # numpy's tofile tells neither the reason nor the file.
            short = "requested and" in text and text.endswith("written")
            error.args = (f"{path} cannot be written ({text}); free space or write elsewhere" if short else text,)
        raise
