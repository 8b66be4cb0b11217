"""Whether the rows of a store are as `build_store` writes them: it may come from a stranger, whose hashes agree."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def is_context(row: Mapping[str, Any], feature: int, bands: int) -> bool:
    """Whether a row of `contexts.parquet` is a context of a feature with so many bands."""
    size = len(row["values"])
    if row["feature"] != feature or not 0 <= row["band"] < bands or not 0 <= row["peak"] < size:
        return False
    if len(row["tokens"]) != size or min(row["values"]) < 0:
        return False
    return row["text"] is None or _inside(row["begins"], row["ends"], size, len(row["text"]))


def _inside(begins: Sequence[int] | None, ends: Sequence[int] | None, size: int, characters: int) -> bool:
    if begins is None or ends is None or not len(begins) == len(ends) == size:
        return False
    return all(0 <= begin <= end <= characters for begin, end in zip(begins, ends, strict=True))
