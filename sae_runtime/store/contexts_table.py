"""Rows of `contexts.parquet` as contexts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_runtime.store.records import Context


def as_contexts(rows: list[dict[str, Any]], vocabulary: Mapping[int, str]) -> list[Context]:
    """The contexts of rows.

    Args:
        rows: of the table, as dicts.
        vocabulary: names of tokens by id, for contexts without text.

    >>> as_contexts([], {})
    []
    """
    return [_context(row, vocabulary) for row in rows]


def _context(row: dict[str, Any], vocabulary: Mapping[int, str]) -> Context:
    kept = ("band", "value", "doc", "peak", "text", "begin", "end", "file", "row", "id", "licence")
    return Context(
        tokens=_tokens(row, vocabulary),
        values=np.array(row["values"], np.float32),
        offsets=None if row["text"] is None else np.array([row["begins"], row["ends"]], np.int32).T,
        **{name: row[name] for name in kept},
    )


def _tokens(row: dict[str, Any], vocabulary: Mapping[int, str]) -> list[str]:
    if row["text"] is not None:
        return [row["text"][begin:end] for begin, end in zip(row["begins"], row["ends"], strict=True)]
    return [vocabulary.get(token, "?" if token < 0 else str(token)) for token in row["tokens"]]
