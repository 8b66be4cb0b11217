"""Read a features folder once: its rows go to row files, its matches to buckets, and a sample of rows stays at hand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.store.features_folder import FeaturesFolder, PartFiles
from sae_runtime.store.matches import MATCH, Buckets
from sae_runtime.store.rows import ROW, RowFiles, Rows, Texts, mapped_rows, text_hash

BEGINNING = 400  # characters of a document that a store of documents shows
_MATCHES_AT_ONCE = 1 << 20
_MOST_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class Sample:
    """The features of every so many rows: row number t of the sample has `indices[indptr[t]:indptr[t + 1]]`."""

    every: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]


def gather(
    features: FeaturesFolder, work: Path, buckets: Buckets, *, every: int | None, progress: Callable[[int], object]
) -> tuple[Rows, Sample | None]:
    """Read all parts of a features folder.

    Args:
        features: the folder.
        work: a folder for the files of rows.
        buckets: take the matches.
        every: keep the features of each row whose number is a multiple of this; None: of none.
        progress: called with numbers of rows that are read.

    Raises:
        ValueError: a part is missing or altered, or does not hold what extract writes.
    """
    counts, kept = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    per_batch = int(np.clip(_MATCHES_AT_ONCE * max(features.rows, 1) // max(features.matches, 1), 1, _MOST_ROWS))
    near: list[int] = []
    with RowFiles(work) as files:
        for part in features.parts():
            for rows, lists in _rows(part, files, per_batch, near):
                numbers = np.arange(files.rows, files.rows + len(rows))
                matches, lengths = _matches(lists, rows, numbers, features)
                if every is not None:
                    chosen = numbers % every == 0
                    counts.append(lengths[chosen])
                    kept.append(matches["feature"][np.repeat(chosen, lengths)])
                files.put_rows(rows)
                buckets.put(matches)
                progress(len(rows))
        files.done()
        if files.rows != features.rows:
            raise ValueError(f"{features.path} has {files.rows:,} rows, its index says {features.rows:,}; extract again")
    if features.per == "document":
        np.array(near, np.uint64).tofile(work / "near")
    sample = None
    if every is not None:
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
        sample = Sample(every, indptr, np.concatenate(kept))
    return mapped_rows(work), sample


def _rows(
    part: PartFiles, files: RowFiles, per_batch: int, near: list[int]
) -> Iterator[tuple[NDArray[Any], tuple[Any, Any]]]:
    """The rows of a part, and their lists of features and values."""
    texts = None
    if part.documents is not None:
        documents = part.documents.read()
        texts = files.put_documents(documents)
    if part.tokens is not None:
        for batch in part.tokens.batches(per_batch):
            rows = np.zeros(len(batch), ROW)
            for name in ("doc", "token", "begin", "end"):
                rows[name] = batch.column(name).fill_null(0 if name == "doc" else -1).to_numpy()
            if texts is not None:
                texts.place(rows)
            else:
                rows["from"] = rows["to"] = -1
            yield rows, (batch.column("indices"), batch.column("values"))
        return
    assert texts is not None
    for begin in range(0, len(documents), per_batch):
        table = documents.slice(begin, per_batch).combine_chunks()
        rows = np.zeros(len(table), ROW)
        rows["doc"], rows["token"] = table["doc"].to_numpy(), -1
        characters = texts.characters()[begin : begin + per_batch]
        rows["end"] = np.minimum(characters, BEGINNING)
        rows["begin"] = np.where(characters < 0, -1, 0)
        texts.place(rows)
        given = table["text"].to_pylist() if "text" in table.column_names else [None] * len(table)
        near += [files.rows + row if text is None else text_hash(text) for row, text in enumerate(given)]
        yield rows, tuple(_flat(table[name]) for name in ("indices", "values"))  # type: ignore[misc]


def _flat(column: Any) -> Any:
    import pyarrow as pa

    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _matches(
    lists: tuple[Any, Any], rows: NDArray[Any], numbers: NDArray[np.int64], features: FeaturesFolder
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The matches of rows, and how many each row has."""
    indices, values = lists
    offsets, others = (np.asarray(each.offsets) for each in lists)
    lengths = np.diff(offsets).astype(np.int64)
    matches = np.empty(int(lengths.sum()), MATCH)
    ids, found = np.asarray(indices.flatten()), np.asarray(values.flatten()).astype(np.float32)
    sound = indices.null_count == values.null_count == 0 and np.array_equal(lengths, np.diff(others))
    sound = sound and len(ids) == len(found) == len(matches)
    if not sound or (len(ids) and not (0 <= ids.min() and ids.max() < features.d_sae)):
        raise ValueError(f"{features.path} has rows that are no sound features; extract the features again")
    same_row = np.ones(len(ids), bool)
    same_row[(np.cumsum(lengths) - lengths)[lengths > 0]] = False
    if (same_row[1:] & (np.diff(ids) <= 0)).any() or not ((found > 0) & np.isfinite(found)).all():
        raise ValueError(
            f"{features.path} has rows whose features do not ascend or whose values are not positive and finite; "
            "extract the features again"
        )
    matches["feature"], matches["value"] = ids, found
    matches["row"], matches["token"] = np.repeat(numbers, lengths), np.repeat(rows["token"], lengths)
    return matches, lengths


__all__ = ["BEGINNING", "Sample", "Texts", "gather"]
