"""The rows of a features folder in temporary files, in which any row, any text and any document is found at once."""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROW = np.dtype([("doc", "<i4"), ("token", "<i4"), ("begin", "<i4"), ("end", "<i4"), ("from", "<i8"), ("to", "<i8")])
"""`from` and `to` are the bytes of the token's text among all texts; -1 where there is none."""
SAME_TEXT = 8  # tokens on each side of two peaks that are the same text when these and the peaks are equal
_BLOCK = 1 << 18  # rows that are hashed at once
_ODD = np.random.default_rng(20_261_128).integers(0, 1 << 63, 2 * SAME_TEXT + 1, dtype=np.uint64) * 2 + 1
_KEPT = ("doc", "file", "row", "id", "licence")  # columns of documents


class UnsoundRows(ValueError):
    """Rows are not as extract writes them."""


class RowFiles:
    """Files that rows, texts and documents are appended to, part by part."""

    def __init__(self, folder: Path) -> None:
        """Make the files in a folder."""
        self.folder = folder
        self._rows, self._texts, self._runs, self._docs = (
            (folder / name).open("wb") for name in ("rows", "texts", "runs", "docs")
        )
        self._documents: Any = None
        self._last_doc = -1
        self.rows = self.documents = self.text_bytes = 0

    def __enter__(self) -> "RowFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._texts, self._runs, self._docs, *([self._documents] if self._documents else [])):
            file.close()

    def put_documents(self, table: Any) -> "Texts":
        """Append the documents of a part, and give what leads its rows to their texts."""
        import pyarrow as pa

        names = [name for name in _KEPT if name in table.column_names]
        doc = table["doc"].to_numpy()
        kept = table.select(names)
        if self._documents is None:
            self._documents = pa.ipc.new_file(str(self.folder / "documents"), kept.schema)
        self._documents.write_batch(kept.combine_chunks().to_batches()[0] if len(kept) else _no_rows(kept))
        doc.astype("<i4").tofile(self._docs)
        texts = Texts(doc, table["text"] if "text" in table.column_names else None, self.text_bytes)
        self._texts.write(texts.bytes)
        self.documents += len(doc)
        self.text_bytes += len(texts.bytes)
        return texts

    def put_rows(self, rows: NDArray[Any]) -> None:
        """Append rows; consecutive rows of one document are a run."""
        doc = rows["doc"]
        new = np.flatnonzero(np.diff(doc, prepend=self._last_doc))
        (new + self.rows).astype("<i8").tofile(self._runs)
        rows.tofile(self._rows)
        self.rows += len(rows)
        self._last_doc = int(doc[-1]) if len(doc) else self._last_doc

    def done(self) -> None:
        """Hash the surroundings of every row, when all rows are there."""
        np.array([self.rows], "<i8").tofile(self._runs)
        self.__exit__()
        rows = _mapped(self.folder / "rows", ROW)
        with (self.folder / "near").open("wb") as file:
            for begin in range(0, len(rows), _BLOCK):
                surroundings(rows, begin, min(begin + _BLOCK, len(rows))).tofile(file)


class Texts:
    """The texts of consecutive documents, and the way from the characters of a document to bytes of these texts."""

    def __init__(self, doc: NDArray[np.int32], column: Any, begin: int) -> None:
        """Take the column `text` of the documents, None without texts; `begin` is the number of bytes before them."""
        self._doc, self._begin = doc, begin
        self.bytes = b""
        self._known = np.zeros(len(doc), bool)
        if column is not None:
            import pyarrow as pa

            array = (
                pa.concat_arrays(column.chunks).cast(pa.large_string()) if len(doc) else pa.array([], pa.large_string())
            )
            self._known = array.is_valid().to_numpy(zero_copy_only=False)
            array = array.fill_null("")
            offsets = (
                np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8)
                if len(array)
                else np.zeros(1, np.int64)
            )
            data = array.buffers()[2]
            self.bytes = b"" if data is None else bytes(memoryview(data)[offsets[0] : offsets[-1]])
            codes = np.frombuffer(self.bytes, np.uint8)
            starts = np.flatnonzero((codes & 0xC0) != 0x80)  # bytes that begin a character
            self._first = np.searchsorted(starts, offsets - offsets[0])  # character of each document, [documents + 1]
            self._starts = np.append(starts, len(codes))

    def characters(self) -> NDArray[np.int64]:
        """Number of characters of each document; -1 where its text is not known."""
        return np.where(self._known, np.diff(self._first), -1) if self._known.any() else np.full(len(self._doc), -1)

    def place(self, rows: NDArray[Any]) -> None:
        """Fill `from` and `to` of rows by their documents and characters.

        Raises:
            ValueError: a document of a row is not here, or a token lies outside of its text.
        """
        rows["from"] = rows["to"] = -1
        at = np.searchsorted(self._doc, rows["doc"])
        if len(rows) and (at.max() >= len(self._doc) or (self._doc[at] != rows["doc"]).any()):
            raise UnsoundRows("rows have documents that are not among the part's")
        known = np.flatnonzero(self._known[at] & (rows["begin"] >= 0))
        if len(known):
            first, begin, end = self._first[at[known]], rows["begin"][known], rows["end"][known]
            if (begin > end).any() or (first + end > self._first[at[known] + 1]).any():
                raise UnsoundRows("tokens lie outside of their document's text")
            rows["from"][known] = self._begin + self._starts[first + begin]
            rows["to"][known] = self._begin + self._starts[first + end]


def surroundings(rows: NDArray[Any], begin: int, end: int) -> NDArray[np.uint64]:
    """A hash of each row's token and of those around it in its document; of a row without a token, its number.

    It is a sum of the tokens by odd random factors modulo 2**64, of which the position chooses the factor.
    """
    low, high = max(begin - SAME_TEXT, 0), min(end + SAME_TEXT, len(rows))
    doc, token = rows["doc"][low:high], rows["token"][low:high].astype(np.uint64)
    here = np.arange(begin, end) - low
    hashes = np.zeros(end - begin, np.uint64)
    for factor, step in zip(_ODD, range(-SAME_TEXT, SAME_TEXT + 1), strict=True):
        there = np.clip(here + step, 0, len(doc) - 1)
        inside = (here + step == there) & (doc[there] == doc[here])
        hashes += np.where(inside, token[there] + np.uint64(2), np.uint64(1)) * factor
    unknown = rows["token"][begin:end] < 0
    hashes[unknown] = np.arange(begin, end, dtype=np.uint64)[unknown]
    return hashes


@dataclass(frozen=True, eq=False)
class Rows:
    """The files of `RowFiles`, mapped.

    Attributes:
        rows: of type ROW.
        near: hash of each row's surroundings, uint64.
        runs: the first row of each document that has rows, and the number of rows, int64.
        docs: numbers of the documents, which ascend.
    """

    rows: NDArray[Any]
    near: NDArray[np.uint64]
    runs: NDArray[np.int64]
    docs: NDArray[np.int32]
    texts: bytes | mmap.mmap
    documents: Any

    def text(self, begin: int, end: int) -> str:
        """The text of some bytes."""
        return self.texts[begin:end].decode()

    def run(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which run of rows of one document each row is in."""
        return np.searchsorted(self.runs, row, side="right") - 1

    def documents_of(self, doc: NDArray[np.int32], columns: tuple[str, ...]) -> dict[str, list[Any]]:
        """Columns of documents by number; None for what is not known."""
        import pyarrow as pa

        found: dict[str, list[Any]] = {name: [None] * len(doc) for name in columns}
        if self.documents is None or not len(doc):
            return found
        unique, back = np.unique(doc, return_inverse=True)
        at = np.searchsorted(self.docs, unique)
        known = np.flatnonzero((at < len(self.docs)) & (self.docs[np.minimum(at, len(self.docs) - 1)] == unique))
        batches, sizes = self.documents
        batch = np.searchsorted(sizes, at[known], side="right") - 1
        taken = [batches(int(b)).take(pa.array(at[known][batch == b] - sizes[b])) for b in np.unique(batch)]
        for name in columns:
            if taken and name in taken[0].schema.names:
                values: list[Any] = [None] * len(unique)
                for place, value in zip(
                    known, (v for part in taken for v in part.column(name).to_pylist()), strict=True
                ):
                    values[place] = value
                found[name] = [values[place] for place in back]
        return found

    @property
    def id_type(self) -> Any:
        """The Arrow type of the documents' ids."""
        import pyarrow as pa

        schema = None if self.documents is None else self.documents[0](0).schema
        return schema.field("id").type if schema is not None and "id" in schema.names else pa.string()


def mapped_rows(folder: Path) -> Rows:
    """The rows that `RowFiles` wrote into a folder."""
    import pyarrow as pa

    documents = None
    if (folder / "documents").is_file():
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "documents")))
        sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
        documents = (reader.get_batch, np.concatenate([[0], np.cumsum(sizes)])[:-1])
    with (folder / "texts").open("rb") as file:
        texts = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if (folder / "texts").stat().st_size else b""
    return Rows(
        _mapped(folder / "rows", ROW),
        _mapped(folder / "near", np.dtype("<u8")),
        _mapped(folder / "runs", np.dtype("<i8")),
        _mapped(folder / "docs", np.dtype("<i4")),
        texts,
        documents,
    )


def text_hash(text: str) -> int:
    """A hash of a text, for stores of documents."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mapped(path: Path, kind: Any) -> NDArray[Any]:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.zeros(0, kind)


def _no_rows(table: Any) -> Any:
    import pyarrow as pa

    return pa.record_batch([pa.array([], field.type) for field in table.schema], schema=table.schema)
