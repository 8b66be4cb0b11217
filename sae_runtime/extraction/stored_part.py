"""A part of stored features: its files, compared with the index whenever they are read, as tables or as Features."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_runtime.bundle.manifest import FileRecord
from sae_runtime.bundle.regular import read_bytes
from sae_runtime.core.features import Features
from sae_runtime.extraction.feature_index import INDEX, Kind, check_size, folder_of
from sae_runtime.extraction.part_files import file_of

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, eq=False, repr=False)
class StoredPart:
    """Consecutive rows of stored features, which are read when they are asked for, and compared with the index.

    Attributes:
        number: of the part, from 0.
        rows: number of rows of features.
        documents: number of documents, also of those without rows; 0 where they are not known.
        matches: number of active features of all rows.
        per: "token" or "document", what a row is.
        d_sae: number of features of the SAE.
    """

    number: int
    rows: int
    documents: int
    matches: int
    per: Literal["token", "document"]
    d_sae: int
    _path: Path
    _files: Mapping[str, FileRecord]

    def __repr__(self) -> str:
        return f"StoredPart({self.number}: {self.rows:,} rows, {self.matches:,} matches)"

    def features(self) -> Features:
        """The features of the rows, of shape (rows,).

        Raises:
            OSError: the file may not be read.
            ValueError: it is missing, was altered, or holds no features of this SAE.

        >>> from sae_runtime import read_features
        >>> read_features(features_path).parts[0].features().shape
        (600,)
        """
        return as_features(self.table(["indices", "values"]), self.d_sae, self._path)

    def table(self, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """The rows as an Arrow table.

        Args:
            columns: the names of columns; None: all.

        Raises:
            OSError, ValueError: as `features`; or there is no such column.

        >>> from sae_runtime import read_features
        >>> read_features(features_path).parts[0].table(["pos"]).num_rows
        600
        """
        return self._read(folder_of(self.per), columns)

    def document_table(self, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """The documents as an Arrow table, also those without rows; see `table`."""
        return self._read("documents", columns)

    def _read(self, kind: Kind, columns: Sequence[str] | None) -> "pyarrow.Table":
        if not self.has(kind):
            raise no_documents(self._path)
        name = f"{kind}/{file_of(self.number)}"
        return _table(self._path, name, self._files[name], columns)

    def has(self, kind: Kind) -> bool:
        """Whether the part has a file of tokens, or of documents."""
        return f"{kind}/{file_of(self.number)}" in self._files


def as_features(table: "pyarrow.Table", d_sae: int, path: Path) -> Features:
    """The features of a table's rows, from its columns indices and values, of shape (rows,).

    Args:
        table: of tokens or documents.
        d_sae: number of features.
        path: of the folder, for messages.

    Raises:
        ValueError: they are not features of this SAE.
    """
    indices, values = (table.column(name).combine_chunks() for name in ("indices", "values"))
    indptr = indices.offsets.to_numpy().astype(np.int64)
    if indices.null_count or values.null_count or not np.array_equal(indptr, values.offsets.to_numpy()):
        raise ValueError(f"{path}: indices and values have rows of other lengths; extract again")
    made = Features(
        indptr - indptr[0],
        indices.flatten().to_numpy(),
        values.flatten().to_numpy().astype(np.float32, copy=False),
        d_sae,
        (len(table),),
    )
    try:
        made.check()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return made


def no_documents(path: Path) -> ValueError:
    """The error of features that do not know the documents of their tokens."""
    return ValueError(f"{path} does not know its documents; harvest the activations from text")


def _table(folder: Path, name: str, record: FileRecord, columns: Sequence[str] | None) -> Any:
    """Columns of a file, whose bytes are compared with its record."""
    import pyarrow.parquet

    path = folder / name
    check_size(folder, name, record)
    data = read_bytes(path, most=record.size)
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise ValueError(f"{path} was altered: its sha256 differs from that in {INDEX}; copy it again")
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        names = file.schema_arrow.names
        if unknown := [column for column in columns or () if column not in names]:
            raise ValueError(f"{path} has no column {unknown[0]}, but {', '.join(names)}")
        return file.read(columns=None if columns is None else list(columns)).replace_schema_metadata(None)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file that extract wrote ({error}); extract again") from error
