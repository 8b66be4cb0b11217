"""Read stored features once: rows go to row files, matches to buckets, and a sample of rows stays at hand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features, concatenate
from sae_runtime.extraction.stored_features import StoredFeatures
from sae_runtime.extraction.stored_part import StoredPart
from sae_runtime.store.counts import Counts
from sae_runtime.store.matches import MATCH, Buckets
from sae_runtime.store.rows import ROW, RowFiles, Rows, UnsoundRows, mapped_rows, text_hash

BEGINNING = 400  # characters of a document that a store of documents shows
_MATCHES_AT_ONCE = 1 << 20
_MOST_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class Sample:
    """The features of each row whose number is a multiple of `every`, as compressed rows."""

    every: int
    features: Features


def gather(
    stored: StoredFeatures, work: Path, buckets: Buckets, *, every: int | None, progress: Callable[[int], object]
) -> tuple[Rows, Sample | None, Counts]:
    """Read all parts of stored features.

    Args:
        stored: the features.
        work: a folder for the files of rows.
        buckets: take the matches.
        every: keep the features of each row whose number is a multiple of this; None: of none.
        progress: called with numbers of rows that are read.

    Raises:
        ValueError: a part is missing or altered, or does not hold what extract writes.
    """
    kept: list[Features] = []
    at_once = int(np.clip(_MATCHES_AT_ONCE * max(len(stored), 1) // max(stored.matches, 1), 1, _MOST_ROWS))
    near: list[int] = []
    counts = Counts()
    with RowFiles(work) as files:
        for part in stored.parts:
            try:
                for table, rows in _rows(part, stored, files, at_once, near, counts):
                    features = stored.to_features(table)
                    numbers = np.arange(files.rows, files.rows + len(rows))
                    if every is not None:
                        kept.append(features.take(np.flatnonzero(numbers % every == 0)))
                    counts.add_rows(features)
                    buckets.put(_matches(features, rows, numbers))
                    files.put_rows(rows)
                    progress(len(rows))
            except UnsoundRows as error:
                raise ValueError(f"{stored.path}, part {part.number}: {error}; extract the features again") from error
        files.done()
    if stored.per == "document":
        np.array(near, np.uint64).tofile(work / "near")
    sampled = sum(len(each) for each in kept)
    sample = None if every is None else Sample(every, concatenate(kept, stored.d_sae, (sampled,)))
    return mapped_rows(work), sample, counts


def _rows(
    part: StoredPart, stored: StoredFeatures, files: RowFiles, at_once: int, near: list[int], counts: Counts
) -> Iterator[tuple[Any, NDArray[Any]]]:
    """The rows of a part and their origins, `at_once` at a time."""
    documents = part.document_table() if part.documents else None
    texts = None if documents is None else files.put_documents(documents)
    if documents is not None:
        counts.add_documents(documents)
    table = part.table() if stored.per == "token" else documents
    assert table is not None  # rows that are documents have documents
    for begin in range(0, len(table), at_once):
        piece = table.slice(begin, at_once)
        rows = np.zeros(len(piece), ROW)
        rows["doc"] = piece["doc"].to_numpy()
        rows["from"] = rows["to"] = rows["token"] = rows["begin"] = rows["end"] = -1
        if stored.per == "token":
            for name in ("token", "begin", "end"):
                rows[name] = piece[name].fill_null(-1).to_numpy()
        elif texts is not None:
            rows["end"] = np.minimum(texts.characters()[begin : begin + at_once], BEGINNING)
            rows["begin"] = np.minimum(rows["end"], 0)
            given = piece["text"].to_pylist() if "text" in piece.column_names else [None] * len(piece)
            near += [files.rows + row if text is None else text_hash(text) for row, text in enumerate(given)]
        if texts is not None:
            texts.place(rows)
        yield piece, rows


def _matches(features: Features, rows: NDArray[Any], numbers: NDArray[np.int64]) -> NDArray[Any]:
    lengths = np.diff(features.indptr)
    matches = np.empty(len(features.values), MATCH)
    matches["feature"], matches["value"] = features.indices, features.values
    matches["row"], matches["token"] = np.repeat(numbers, lengths), np.repeat(rows["token"], lengths)
    return matches
