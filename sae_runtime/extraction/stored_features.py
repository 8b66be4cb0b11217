"""Features that `extract` wrote, read back part by part: without the model, and without onnxruntime."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sae_runtime.bundle.extras import require
from sae_runtime.core.features import Features, concatenate
from sae_runtime.extraction.feature_index import Kind, PartRecord, folder_of, read_index
from sae_runtime.extraction.part_files import file_of
from sae_runtime.extraction.stored_part import StoredPart, as_features, no_documents

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.dataset
    import scipy.sparse


class StoredFeatures:
    """A folder of features: rows of tokens, or of documents where they were pooled. Nothing is held in memory.

    Attributes:
        path: the folder.
        description: what `features.json` says of all: model, hook, weights_sha256, rule, values, source, licence, ...
        parts: the parts, in order.
        per: "token" or "document", what a row is.
        d_sae: number of features of the SAE.
        matches: number of active features of all rows.

    >>> stored = read_features(features_path)
    >>> len(stored), stored.per, stored.to_scipy().shape
    (600, 'token', (600, 150))
    """

    def __init__(self, path: Path, description: Mapping[str, Any], records: Sequence[PartRecord]) -> None:
        self.path, self.description = path, description
        self.per: Literal["token", "document"] = description["per"]
        self.d_sae: int = description["d_sae"]
        self.matches = sum(one.matches for one in records)
        rows = [one.tokens if self.per == "token" else one.documents for one in records]
        self.parts = tuple(
            StoredPart(i, rows[i], one.documents, one.matches, self.per, self.d_sae, path, one.files)
            for i, one in enumerate(records)
        )
        self._ends: dict[int, tuple[int, int]] = {}
        self._begins = list(itertools.accumulate(rows, initial=0))

    def __len__(self) -> int:
        """Number of rows."""
        return self._begins[-1]

    def __repr__(self) -> str:
        model = str(self.description.get("model") or "").rpartition("/")[2]
        origin = " ".join(filter(None, (model, self.description.get("hook"))))
        return f"StoredFeatures({len(self):,} {self.per}s, {self.matches:,} matches, d_sae {self.d_sae:,}, {origin})"

    def __getitem__(self, rows: slice) -> Features:
        """The features of consecutive rows; only the parts that have them are read.

        Raises:
            TypeError: `rows` is no slice.
            OSError, ValueError: as `features`.

        >>> read_features(features_path)[10:30].shape
        (20,)
        """
        if not isinstance(rows, slice):
            raise TypeError(f"stored features take a slice of rows, got {rows!r}")
        begin, end, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"stored features are read row after row, got a step of {step}; take it from the features")
        read = [
            part.features()[max(begin - first, 0) : end - first]
            for first, part in zip(self._begins, self.parts, strict=False)
            if first < end and first + part.rows > begin
        ]
        return concatenate(read, self.d_sae, (max(end - begin, 0),))

    def features(self) -> Features:
        """The features of all rows, of shape (rows,), which takes 8 bytes of memory a match.

        Raises:
            OSError: a file may not be read.
            ValueError: a part is missing, was altered, or holds no features of this SAE.

        >>> read_features(features_path).features().d_sae
        150
        """
        return self[:]

    def to_scipy(self) -> "scipy.sparse.csr_array":
        """A scipy CSR array [rows, d_sae] of all rows.

        Raises:
            ImportError: scipy is not installed.
            OSError, ValueError: as `features`.

        >>> read_features(features_path).to_scipy().shape
        (600, 150)
        """
        return self.features().to_scipy()

    def to_features(self, table: "pyarrow.Table") -> Features:
        """The features of rows of a table that has the columns indices and values, of shape (rows,).

        Raises:
            ValueError: they are not features of this SAE.

        >>> stored = read_features(features_path)
        >>> stored.to_features(stored.table().slice(5, 2)).shape
        (2,)
        """
        return as_features(table, self.d_sae, self.path)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator["pyarrow.Table"]:
        """The rows as Arrow tables, one for each part.

        Args:
            columns: the names of columns; None: all.

        Raises:
            OSError, ValueError: as `features`; or there is no such column.

        >>> [table.num_rows for table in read_features(features_path).tables(["doc"])]
        [600]
        """
        return (part.table(columns) for part in self.parts)

    def table(self, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """All rows as one Arrow table; see `tables`.

        >>> read_features(features_path).table(["indices", "values"]).num_rows
        600
        """
        return self._joined(self.tables(columns))

    def document_table(self, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """All documents as one Arrow table: doc, file, row, id, ...; also those without rows. See `tables`."""
        return self._joined(part.document_table(columns) for part in self.parts)

    def document(self, number: int, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """The rows of a document as an Arrow table, of no rows where it has none.

        Args:
            number: of the document, as in the column doc.
            columns: the names of columns; None: all.

        Raises:
            IndexError: there is no such document.
            OSError, ValueError: as `features`; or the documents are not known.

        >>> read_features(features_path).document(3)
        Traceback (most recent call last):
        ValueError: ... does not know its documents; harvest the activations from text
        """
        import pyarrow.compute

        firsts = [part for part in self.parts if part.documents]
        if not firsts:
            raise no_documents(self.path)
        low, high = 0, len(firsts)
        while high - low > 1:
            middle = (low + high) // 2
            first, _ = self._documents_of(firsts[middle].number)
            low, high = (middle, high) if first <= number else (low, middle)
        part = firsts[low]
        first, last = self._documents_of(part.number)
        if not first <= number <= last:
            raise IndexError(f"{self.path} has no document {number}; its documents are those of the column doc")
        wanted = None if columns is None else list(dict.fromkeys([*columns, "doc"]))
        table = part.table(wanted)
        found = table.filter(pyarrow.compute.equal(table.column("doc"), number))
        return found if columns is None else found.select(columns)

    def dataset(self, kind: Kind | None = None) -> "pyarrow.dataset.Dataset":
        """The files of the tokens or of the documents as an Arrow dataset, which does not compare checksums.

        Args:
            kind: "tokens" or "documents"; None: those of the rows.

        Raises:
            ValueError: the folder has no such files.

        >>> read_features(features_path).dataset().count_rows()
        600
        """
        import pyarrow.dataset

        kind = kind or folder_of(self.per)
        if not self.parts or not all(part.has(kind) for part in self.parts):
            raise ValueError(f"{self.path} has no {kind}/; its rows are {self.per}s")
        files = [str(self.path / kind / file_of(part.number)) for part in self.parts]
        return pyarrow.dataset.dataset(files, format="parquet")

    def _documents_of(self, number: int) -> tuple[int, int]:
        """The first and the last document of a part."""
        if number not in self._ends:
            column = self.parts[number].document_table(["doc"]).column("doc")
            self._ends[number] = column[0].as_py(), column[-1].as_py()
        return self._ends[number]

    def _joined(self, tables: Iterator["pyarrow.Table"]) -> "pyarrow.Table":
        import pyarrow

        read = list(tables)
        if not read:
            raise ValueError(f"{self.path} has no parts, since its source has no tokens")
        return pyarrow.concat_tables(read)


def read_features(path: str | Path) -> StoredFeatures:
    """Open features that `extract` wrote.

    The index alone is read, and the sizes of all parts are compared with it. A part is compared with its sha256
    whenever it is read.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: there is no such folder, or a part is missing.
        ImportError: pyarrow is not installed.
        ValueError: it holds no features, unfinished ones, or those of another version; or a part has another size.

    >>> read_features("no features")
    Traceback (most recent call last):
    FileNotFoundError: no features does not exist; make features: sae-runtime extract
    """
    require("extract")
    path = Path(path)
    return StoredFeatures(path, *read_index(path))
