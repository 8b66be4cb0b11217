"""Activations with uneven rows, and what is in a folder of features, for the tests of the batch rule over parts."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
from conftest import make_x
from numpy.typing import NDArray

from sae_runtime import Features


def uneven(n: int) -> NDArray[np.float32]:
    """Rows of which a few have more matches than the slots of the first pass."""
    x = make_x(n)
    x[5::23] *= 10
    return x


def stored(folder: Path, x: NDArray[np.float32]) -> Path:
    """The rows as a file."""
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def read_tokens(out: Path, d_sae: int) -> Features:
    """The features of a folder's tokens."""
    tables = [pyarrow.parquet.read_table(path) for path in sorted((out / "tokens").iterdir())]
    lists = [(table["indices"].to_pylist(), table["values"].to_pylist()) for table in tables]
    indices, values = ([row for each in lists for row in each[side]] for side in (0, 1))
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in indices])]).astype(np.int64)
    flat = (np.concatenate([np.zeros(0), *rows]) for rows in (indices, values))
    return Features(indptr, next(flat).astype(np.int32), next(flat).astype(np.float32), d_sae, (len(indices),))


def assert_same(found: Features, expected: Features) -> None:
    """Compare all bits."""
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
