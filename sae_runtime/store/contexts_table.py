"""Rows of `contexts.parquet` as contexts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.store.records import Context

_PLAIN = ("band", "value", "doc", "peak", "text", "begin", "end", "file", "row", "id", "licence")


def as_contexts(table: Any, vocabulary: Mapping[int, str]) -> list[Context]:
    """The contexts of rows, which are sound.

    Args:
        table: of the columns `schema.context_schema`.
        vocabulary: names of tokens by id, for contexts without text.

    >>> import pyarrow
    >>> from sae_runtime.store.schema import context_schema
    >>> as_contexts(context_schema(pyarrow.string()).empty_table(), {})
    []
    """
    columns = [table[name].to_pylist() for name in _PLAIN]
    lists = {name: numbers_of(table[name]) for name in ("tokens", "begins", "ends", "values")}
    contexts = []
    for place, row in enumerate(zip(*columns, strict=True)):
        plain = dict(zip(_PLAIN, row, strict=True))
        tokens, begins, ends, values = (
            numbers[starts[place] : starts[place + 1]] for numbers, starts in lists.values()
        )
        text = plain["text"]
        contexts.append(
            Context(
                ids=tokens.copy(),
                tokens=_tokens(text, tokens, begins, ends, vocabulary),
                values=values.astype(np.float32),
                offsets=None if text is None else np.array([begins, ends], np.int32).T,
                **plain,
            )
        )
    return contexts


def array_of(column: Any) -> NDArray[Any]:
    """A column of numbers; pyarrow's own way to numpy imports pandas, which takes longer than all else.

    >>> import pyarrow
    >>> array_of(pyarrow.chunked_array([[1, 2], [3]]))
    array([1, 2, 3])
    """
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])


def numbers_of(column: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The numbers of a column of lists in one array, and where those of each row begin and end: [rows + 1].

    A null has no numbers.

    >>> import pyarrow
    >>> numbers_of(pyarrow.chunked_array([[[1, 2], None, [3]]]))
    (array([1, 2, 3]), array([0, 2, 2, 3]))
    """
    import pyarrow.compute

    lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(column), 0)
    sizes = [np.from_dlpack(chunk) for chunk in lengths.chunks if len(chunk)]
    flat = [np.from_dlpack(chunk) for chunk in (each.flatten() for each in column.chunks) if len(chunk)]
    numbers = np.concatenate(flat) if flat else np.zeros(0, column.type.value_type.to_pandas_dtype())
    return numbers, np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *sizes]))])


def of_each_band(feature: NDArray[Any], band: NDArray[Any], per_band: Sequence[int]) -> NDArray[np.bool_]:
    """Which rows are among the first of their feature's band.

    Args:
        feature: of each row, sorted.
        band: of each row, sorted within its feature.
        per_band: rows that are kept of each band; the last number is of all bands that follow.

    >>> of_each_band(np.array([3, 3, 3, 4]), np.array([0, 0, 1, 0]), [1])
    array([ True, False,  True,  True])
    """
    rows = np.arange(len(feature))
    begins = np.flatnonzero((np.diff(feature, prepend=-1) != 0) | (np.diff(band, prepend=-1) != 0))
    place = rows - np.repeat(begins, np.diff([*begins, len(rows)]))  # of each row in its band
    most = np.array(per_band)[np.minimum(band, len(per_band) - 1)]
    return np.asarray(place < most)


def _tokens(
    text: str | None,
    tokens: NDArray[np.int32],
    begins: NDArray[np.int32],
    ends: NDArray[np.int32],
    vocabulary: Mapping[int, str],
) -> list[str]:
    if text is None:
        return [token_name(token, vocabulary) for token in tokens.tolist()]
    return [text[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def token_name(token: int, vocabulary: Mapping[int, str]) -> str:
    """The name of a token: its id where the vocabulary does not have it, a question mark where it is unknown.

    >>> token_name(0, {0: "open"}), token_name(7, {}), token_name(-1, {})
    ('open', '7', '?')
    """
    return vocabulary.get(token, "?" if token < 0 else str(token))
