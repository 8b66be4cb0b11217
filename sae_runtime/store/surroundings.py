"""Contexts as rows of `contexts.parquet`: the tokens around each peak, with their texts and the feature's values."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.store.matches import Matches, sorted_by
from sae_runtime.store.rows import Rows
from sae_runtime.store.schema import context_schema

_DOCUMENT = ("file", "row", "id", "licence")


@dataclass(frozen=True, eq=False)
class Peaks:
    """The peaks of contexts, by feature, then by band, then by falling value; each attribute has one number a context.

    Attributes:
        feature, band, row, value: of the peak.
        begin, end: rows of the context.
    """

    feature: NDArray[np.int32]
    band: NDArray[np.int64]
    row: NDArray[np.int64]
    value: NDArray[np.float32]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, part: slice) -> "Peaks":
        return Peaks(*(getattr(self, name)[part] for name in ("feature", "band", "row", "value", "begin", "end")))


def peaks(
    feature: NDArray[np.int32],
    band: NDArray[np.int64],
    row: NDArray[np.int64],
    value: NDArray[np.float32],
    rows: Rows,
    context: int,
) -> Peaks:
    """Peaks with the tokens around them: `context` ones with the peak in the middle, as far as the document goes.

    Near an end of its document a context goes further on the other side.
    """
    run = rows.run(row)
    low, high = np.asarray(rows.runs[run]), np.asarray(rows.runs[run + 1])
    end = np.minimum(np.maximum(low, row - context // 2) + context, high)
    return Peaks(feature, band, row, value, np.maximum(low, end - context), end)


def values_around(peaks: Peaks, chunks: Iterable[Matches], rows: int) -> NDArray[np.float32]:
    """The activation of each context's feature on all of its tokens, one context after the other.

    Args:
        peaks: of the contexts.
        chunks: the matches of these features, in the order of their rows.
        rows: number of all rows.
    """
    lengths = peaks.end - peaks.begin
    values = np.zeros(int(lengths.sum()), np.float32)
    places = np.cumsum(lengths) - lengths
    for matches in chunks:
        order = sorted_by(matches["feature"])  # by row already
        key = matches["feature"][order].astype(np.int64) * rows + matches["row"][order]
        first, last = (
            np.searchsorted(key, peaks.feature.astype(np.int64) * rows + each) for each in (peaks.begin, peaks.end)
        )
        counts = last - first
        at = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        found = matches[order[at]]
        values[np.repeat(places - peaks.begin, counts) + found["row"]] = found["value"]
    return values


def as_table(peaks: Peaks, values: NDArray[np.float32], rows: Rows, licence: str | None) -> Any:
    """The rows of contexts as an Arrow table.

    Args:
        peaks: of the contexts.
        values: see `values_around`.
        rows: of all tokens.
        licence: of documents that have none of their own.
    """
    import pyarrow as pa

    lengths = peaks.end - peaks.begin
    ends = np.cumsum(lengths)
    at = np.repeat(peaks.begin - (ends - lengths), lengths) + np.arange(len(values))
    inside, peak = _between(rows.rows[at], lengths), rows.rows[peaks.row]
    first, last = inside[ends - lengths], inside[ends - 1]
    known = (first["from"] >= 0) & (last["to"] >= 0)
    texts = [
        rows.text(begin, end) if has_text else None
        for begin, end, has_text in zip(first["from"].tolist(), last["to"].tolist(), known.tolist(), strict=True)
    ]
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())

    def lists(numbers: NDArray[Any], where: NDArray[np.bool_] | None = None) -> Any:
        mask = None if where is None else pa.array(~where)
        return pa.ListArray.from_arrays(offsets, pa.array(numbers), mask=mask)

    def characters(name: str) -> Any:
        return lists((inside[name] - np.repeat(first["begin"], lengths)).astype(np.int32), known)

    documents = rows.documents_of(peak["doc"], _DOCUMENT)
    schema = context_schema(rows.id_type)
    columns = {
        "feature": peaks.feature,
        "band": peaks.band.astype(np.int8),
        "value": peaks.value,
        "doc": peak["doc"],
        "peak": (peaks.row - peaks.begin).astype(np.int32),
        "tokens": lists(inside["token"]),
        "begins": characters("begin"),
        "ends": characters("end"),
        "values": lists(values),
        "text": texts,
        "begin": pa.array(first["begin"], mask=~known),
        "end": pa.array(last["end"], mask=~known),
        **{name: documents[name] for name in ("file", "row", "id")},
        "licence": [licence if own is None else str(own) for own in documents["licence"]],
    }
    return pa.table(
        [
            pa.array(columns[field.name], field.type)
            if not isinstance(columns[field.name], pa.Array)
            else columns[field.name].cast(field.type)
            for field in schema
        ],
        schema=schema,
    )


def _between(tokens: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """Tokens of contexts of these lengths, in which those without characters stand after the token before them.

    Special tokens have the characters 0 to 0 wherever they are. The first of a context stand before the next token.
    """
    number, own = np.arange(len(tokens)), tokens["begin"] < tokens["end"]
    high = np.repeat(np.cumsum(lengths), lengths)
    before = np.maximum.accumulate(np.where(own, number, -1))
    after = np.minimum.accumulate(np.where(own, number, len(tokens))[::-1])[::-1]
    has_before = before >= high - np.repeat(lengths, lengths)
    tokens = tokens.copy()
    for where, beside, names in (
        (has_before, before, ("end", "to")),
        (~has_before & (after < high), after, ("begin", "from")),
    ):
        empty = np.flatnonzero(~own & where)
        for name, both in zip(names, (("begin", "end"), ("from", "to")), strict=True):
            for one in both:
                tokens[one][empty] = tokens[name][beside[empty]]
    return tokens
