"""The tables of a store on the disk: opened with their hashes, and what is said where a file was altered."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_runtime.bundle.parts import check_file
from sae_runtime.bundle.regular import open_regular
from sae_runtime.store.schema import STORE, StoredFile


def open_table(folder: Path, name: str, record: StoredFile, *, verify: bool) -> Any:
    """Open a table as pyarrow's ParquetFile.

    Args:
        folder: of the store.
        name: of the file.
        record: what `store.json` says of it.
        verify: compare the sha256 of the whole file, and not of its footer alone.

    Raises:
        ValueError: the file is missing or was altered.
    """
    import pyarrow.parquet

    try:
        check_file(folder, name, record, verify=verify)
    except ValueError as error:
        raise ValueError(str(error).replace("the manifest's", f"that of {STORE}")) from error
    if footer_sha256(folder / name) != record.footer_sha256:
        raise altered(folder / name)
    with reading(folder / name):
        return pyarrow.parquet.ParquetFile(folder / name, page_checksum_verification=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let an error of pyarrow in the block say that the file was altered."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the content
            raise
        raise altered(path) from error


def altered(path: Path) -> ValueError:
    """The error of a file that is not as it was written.

    >>> altered(Path("store/features.parquet"))
    ValueError('store/features.parquet was altered since the store was built; copy or build the store again')
    """
    return ValueError(f"{path} was altered since the store was built; copy or build the store again")


def unsound(path: Path) -> ValueError:
    """The error of a table whose rows no store has, though its hash is right.

    >>> unsound(Path("store/features.parquet"))
    ValueError('store/features.parquet has rows that no store has; build the store again')
    """
    return ValueError(f"{path} has rows that no store has; build the store again")


def footer_sha256(path: Path) -> str:
    """The sha256 of the footer of a Parquet file, which says where and what everything in it is.

    Raises:
        ValueError: the file has no footer.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > size - 12:
            raise altered(path)
        file.seek(size - 8 - length)
        return hashlib.sha256(file.read(length)).hexdigest()
