"""Whether the rows of a store are as `build_store` writes them: it may come from a stranger, whose hashes agree."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.store.contexts_table import array_of, numbers_of
from sae_runtime.store.schema import Description

_UNKNOWN = ("neighbours", "together", "promoted", "suppressed")  # columns of features that may be null
_NOT_GIVEN = ("begins", "ends", "text", "begin", "end", "file", "row", "id", "licence")  # of contexts


def has_values(table: Any) -> bool:
    """Whether a table or batch of features or contexts has a value wherever it must, and finite numbers alone.

    >>> import pyarrow
    >>> has_values(pyarrow.table({"max": [1.0, None]})), has_values(pyarrow.table({"text": ["a", None]}))
    (False, True)
    """
    import pyarrow

    return all(
        _has_values(chunk, name in (*_UNKNOWN, *_NOT_GIVEN))
        for name, column in zip(table.column_names, table.columns, strict=True)
        for chunk in (column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column])
    )


def _has_values(array: Any, may_lack: bool) -> bool:
    import pyarrow.types

    if array.null_count and not may_lack:
        return False
    if pyarrow.types.is_list(array.type):
        return _has_values(array.flatten(), False)
    if pyarrow.types.is_struct(array.type):
        return all(_has_values(each, False) for each in array.flatten())
    is_real = pyarrow.types.is_floating(array.type) and len(array)
    return not is_real or bool(np.isfinite(np.from_dlpack(array)).all())


def is_feature(row: Mapping[str, Any], of: Description, contexts: int) -> bool:
    """Whether a row of `features.parquet` fits to its store, which has so many contexts."""
    others = [other["feature"] for name in ("neighbours", "together") for other in row[name] or ()]
    active = row["count"] > 0
    return (
        len(row["histogram"]) == of.bins
        and min(row["histogram"]) >= 0
        and len(row["bands"]) == (of.bands if active else 0)
        and (not active or (row["mean"] > 0 and row["max"] > 0))
        and all(0 <= other < of.d_sae for other in others)
        and 0 <= row["contexts_begin"] <= contexts
        and 0 <= row["contexts"] <= contexts - row["contexts_begin"]
    )


def are_contexts(table: Any, feature: NDArray[np.int64], bands: NDArray[np.int64]) -> bool:
    """Whether rows of `contexts.parquet`, which have their values, are contexts.

    Args:
        table: the rows, with all columns.
        feature: the feature that each row must be of.
        bands: the number of bands of this feature.
    """
    if not len(table):
        return True
    import pyarrow.compute

    own, band, peak = (array_of(table[name]) for name in ("feature", "band", "peak"))
    values, starts = numbers_of(table["values"])
    sizes = np.diff(starts)
    if (own != feature).any() or (band < 0).any() or (band >= bands).any() or (peak < 0).any() or (peak >= sizes).any():
        return False
    if values.min() < 0 or not np.array_equal(numbers_of(table["tokens"])[1], starts):
        return False
    characters = array_of(pyarrow.compute.fill_null(pyarrow.compute.utf8_length(table["text"]), -1))
    placed = np.where(characters >= 0, sizes, 0)  # a row without text needs no places of its tokens
    begins, ends = (_placed(table[name], characters >= 0) for name in ("begins", "ends"))
    if begins is None or ends is None or not all(np.array_equal(each[1], placed) for each in (begins, ends)):
        return False
    begin, end = begins[0], ends[0]
    return bool((begin >= 0).all() and (begin <= end).all() and (end <= np.repeat(characters, placed)).all())


def _placed(column: Any, has_text: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
    """The numbers of the rows that have a text, and how many each row has; None where one of these has no list."""
    import pyarrow

    rows = column.filter(pyarrow.array(has_text))
    if rows.null_count:
        return None
    numbers, starts = numbers_of(rows)
    sizes = np.zeros(len(has_text), np.int64)
    sizes[has_text] = np.diff(starts)
    return numbers, sizes
