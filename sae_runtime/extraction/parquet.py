"""Sparse features of many tokens as Parquet: one row per token, columns doc, pos, token, indices and values."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae_runtime.extraction.encodings import Values
from sae_runtime.extraction.feature_rows import FeatureRows

ROW_GROUP = 65_536  # tokens
_ENCODINGS = {
    "doc": "DELTA_BINARY_PACKED",
    "pos": "DELTA_BINARY_PACKED",
    "token": "DELTA_BINARY_PACKED",
    "indices.list.element": "DELTA_BINARY_PACKED",  # ascending in each row
    "values.list.element": "BYTE_STREAM_SPLIT",
}


def write(
    path: Path, parts: Iterable[FeatureRows], description: Mapping[str, Any], *, row_group: int = ROW_GROUP
) -> int:
    """Write features to a Parquet file, row group by row group, and give the number of matches.

    Columns: doc, pos and token (int32; token is null if unknown), indices (list of int32, ascending) and values (list
    of float32 or float16, all positive). The file's key-value metadata holds the description as JSON under
    `sae_runtime`.

    Args:
        path: the file.
        parts: the features in order. A row group ends at the end of a part.
        description: the origin of the features; it has the type of their `values` and their number of `tokens`.
        row_group: tokens of a row group.

    Raises:
        ValueError: a value is too large for float16.
    """
    import pyarrow.parquet

    schema, matches = _schema(description), 0
    writer = pyarrow.parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=False, column_encoding=_ENCODINGS
    )
    with writer:
        batches = []
        for part in parts:
            batches.append(_batch(part, description["values"], schema))
            matches += len(part.features.values)
            if part.end % row_group == 0 or part.end == description["tokens"]:
                writer.write_table(pyarrow.Table.from_batches(batches, schema), row_group_size=row_group)
                batches = []
    return matches


def _schema(description: Mapping[str, Any]) -> Any:
    import pyarrow

    number = pyarrow.float32() if description["values"] == "float32" else pyarrow.float16()
    columns = [(name, pyarrow.int32()) for name in ("doc", "pos", "token")]
    columns += [("indices", pyarrow.list_(pyarrow.int32())), ("values", pyarrow.list_(number))]
    return pyarrow.schema(columns, {"sae_runtime": json.dumps(description)})


def _batch(part: FeatureRows, values: Values, schema: Any) -> Any:
    """The features as an Arrow record batch that shares their memory."""
    import pyarrow

    integer = pyarrow.int32()
    offsets = pyarrow.array(part.features.indptr, integer)  # pyarrow refuses an offset beyond int32
    columns = [
        pyarrow.array(part.documents),
        pyarrow.array(part.positions, integer),
        pyarrow.nulls(len(part.documents), integer) if part.tokens is None else pyarrow.array(part.tokens),
        pyarrow.ListArray.from_arrays(offsets, pyarrow.array(part.features.indices)),
        pyarrow.ListArray.from_arrays(offsets, pyarrow.array(part.values(values))),
    ]
    return pyarrow.record_batch(columns, schema=schema)
