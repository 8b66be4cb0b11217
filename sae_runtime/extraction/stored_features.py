"""Features that `extract` wrote, read back part by part: without the model, and without onnxruntime."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.manifest import FileRecord
from sae_runtime.bundle.regular import read_bytes
from sae_runtime.bundle.typed_json import from_dict, read_file
from sae_runtime.core.features import Features, concatenate
from sae_runtime.extraction.part_files import DOCUMENTS, TOKENS, file_of
from sae_runtime.extraction.plan import FORMAT_VERSION, MOST, PLAN

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.dataset
    import scipy.sparse

INDEX = "features.json"
_STORE = "store.json"
Kind = Literal["tokens", "documents"]


@dataclass(frozen=True, kw_only=True)
class _PartRecord:
    """A part in the index: its rows and matches, and the size and sha256 of its files by their names."""

    tokens: int
    documents: int
    matches: int
    files: dict[str, FileRecord]


@dataclass(frozen=True, eq=False, repr=False)
class StoredPart:
    """Consecutive rows of stored features, which are read when they are asked for, and compared with the index.

    Attributes:
        number: of the part, from 0.
        rows: number of rows of features.
        documents: number of documents, also of those without rows; 0 where they are not known.
        matches: number of active features of all rows.
    """

    number: int
    rows: int
    documents: int
    matches: int
    _home: "StoredFeatures"
    _files: Mapping[str, FileRecord]

    def __repr__(self) -> str:
        return f"StoredPart({self.number}: {self.rows:,} rows, {self.matches:,} matches)"

    def features(self) -> Features:
        """The features of the rows, of shape (rows,).

        Raises:
            OSError: the file may not be read.
            ValueError: it is missing, was altered, or holds no features of this SAE.

        >>> read_features(features_path).parts[0].features().shape
        (600,)
        """
        return self._home.to_features(self.table(["indices", "values"]))

    def table(self, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """The rows as an Arrow table.

        Args:
            columns: the names of columns; None: all.

        Raises:
            OSError, ValueError: as `features`; or there is no such column.

        >>> read_features(features_path).parts[0].table(["pos"]).num_rows
        600
        """
        return self._read(_folder(self._home.per), columns)

    def document_table(self, columns: Sequence[str] | None = None) -> "pyarrow.Table":
        """The documents as an Arrow table, also those without rows; see `table`."""
        return self._read("documents", columns)

    def _read(self, kind: Kind, columns: Sequence[str] | None) -> "pyarrow.Table":
        name = f"{kind}/{file_of(self.number)}"
        if name not in self._files:
            raise ValueError(f"{self._home.path} does not know its documents; harvest the activations from text")
        return _table(self._home.path, name, self._files[name], columns)


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

    def __init__(self, path: Path, description: Mapping[str, Any], records: Sequence[_PartRecord]) -> None:
        self.path, self.description = path, description
        self.per: Literal["token", "document"] = description["per"]
        self.d_sae: int = description["d_sae"]
        self.matches = sum(one.matches for one in records)
        rows = [one.tokens if self.per == "token" else one.documents for one in records]
        self.parts = tuple(
            StoredPart(i, rows[i], one.documents, one.matches, self, one.files) for i, one in enumerate(records)
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
        indices, values = (table.column(name).combine_chunks() for name in ("indices", "values"))
        indptr = indices.offsets.to_numpy().astype(np.int64)
        if indices.null_count or values.null_count or not np.array_equal(indptr, values.offsets.to_numpy()):
            raise ValueError(f"{self.path}: indices and values have rows of other lengths; extract again")
        made = Features(
            indptr - indptr[0],
            indices.flatten().to_numpy(),
            values.flatten().to_numpy().astype(np.float32, copy=False),
            self.d_sae,
            (len(table),),
        )
        try:
            made.check()
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        return made

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
            raise ValueError(f"{self.path} does not know its documents; harvest the activations from text")
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

        kind = kind or _folder(self.per)
        names = [f"{kind}/{file_of(part.number)}" for part in self.parts]
        if not names or any(name not in part._files for name, part in zip(names, self.parts, strict=True)):
            raise ValueError(f"{self.path} has no {kind}/; its rows are {self.per}s")
        return pyarrow.dataset.dataset([str(self.path / name) for name in names], format="parquet")

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
    index = path / INDEX
    if not index.is_file():
        _refuse(path)
    found = read_file(dict[str, Any], index, version=FORMAT_VERSION, field="format_version", most=MOST)
    described = {name: value for name, value in found.items() if name != "parts"}
    records = from_dict(tuple[_PartRecord, ...], found.get("parts"), f"{index}: parts")
    for name, kinds in (("per", ("token", "document")), ("values", ("float24", "float32", "float16"))):
        if described.get(name) not in kinds:
            raise ValueError(f"{index}: {name} must be {' or '.join(kinds)}; extract again")
    if type(described.get("d_sae")) is not int or described["d_sae"] < 1:
        raise ValueError(f"{index}: d_sae must be a whole number from 1 on; extract again")
    kind = _folder(described["per"])
    for number, one in enumerate(records):
        allowed = {f"{folder}/{file_of(number)}" for folder in (TOKENS, DOCUMENTS)}
        if f"{kind}/{file_of(number)}" not in one.files or not one.files.keys() <= allowed:
            raise ValueError(f"{index}: part {number} has the files {sorted(one.files)}; extract again")
        if min(one.tokens, one.documents, one.matches) < 0:
            raise ValueError(f"{index}: part {number} has fewer than 0 rows; extract again")
        for name, record in one.files.items():
            _check_size(path, name, record)
    return StoredFeatures(path, described, records)


def _folder(per: str) -> Kind:
    """The folder of the rows."""
    return "tokens" if per == "token" else "documents"


def _refuse(path: Path) -> None:
    """Say what a path is that holds no index of features."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; make features: sae-runtime extract")
    if (path / PLAN).is_file():
        raise ValueError(f"{path} is not finished; run the same extract again, which makes what is missing")
    if (path / _STORE).is_file():
        raise ValueError(
            f"{path} is a feature store, which open_store and features show read; name the features it is of"
        )
    what = "a file of an older version" if path.suffix == ".parquet" and path.is_file() else "no folder of features"
    raise ValueError(f"{path} is {what}; make features: sae-runtime extract")


def _check_size(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run the same extract again, which makes what is missing")
    refuse_link_out(path, folder)
    if (size := path.stat().st_size) != record.size:
        raise ValueError(f"{path} has {size:,} bytes, expected {record.size:,}: truncated or altered; copy it again")


def _table(folder: Path, name: str, record: FileRecord, columns: Sequence[str] | None) -> Any:
    """Columns of a file, whose bytes are compared with its record."""
    import pyarrow.parquet

    path = folder / name
    _check_size(folder, name, record)
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
