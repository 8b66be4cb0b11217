"""How features are written to Parquet: how values are rounded, and how columns are encoded.

A match takes less than 4 bytes at 16 matches a token. The last mantissa bits of float32 are noise that nothing
compresses: exact float32 values alone take 3.1 to 3.3 bytes, and their indices another 1.1 to 1.4. So values are
float24 unless asked otherwise: float32 with 16 significant bits, as OpenEXR's PXR24 keeps numbers. They are float32 for
every reader, have the whole range of float32, and are off by at most 2^-16 (1.5e-5) of themselves.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sae_runtime.core.features import Features

Values = Literal["float24", "float32", "float16"]
VALUES: tuple[Values, ...] = ("float24", "float32", "float16")
ROW_GROUP = 16_384  # tokens; larger ones save 0.1 %, and one document is read sooner from small ones
_KEPT = 0xFFFFFF00  # the bits of a float32 that a float24 keeps
_HALF = 0x7F


def rounded(features: Features, kind: Values, *, name: Callable[[int], str] = "row {}".format) -> NDArray[Any]:
    """The activations as they are written: float32 or float16 [matches]. None becomes 0, which would mean no match.

    Args:
        features: of tokens, [n].
        kind: "float24": float32 with 16 significant bits, to the nearest, ties to even; "float32": as they are;
            "float16".
        name: names a token by its number, for messages.

    Raises:
        ValueError: a value is too large for float16.

    >>> rounded(sae.encode(x), "float24").dtype
    dtype('float32')
    """
    values = features.values
    if kind == "float32":
        return values
    if kind == "float24":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        near = (bits + (_HALF + ((bits >> 8) & 1)).astype(np.uint32)) & np.uint32(_KEPT)
        limits = np.array([0x100, 0x7F7FFF00], np.uint32)  # the least above 0, and the largest below infinity
        clipped: NDArray[np.uint32] = np.clip(near, *limits)
        return clipped.view(np.float32)
    half = np.finfo(np.float16)
    too_large = np.flatnonzero(values > half.max)
    if len(too_large):
        row = int(np.searchsorted(features.indptr, too_large[0], side="right")) - 1
        raise ValueError(
            f"{name(row)} has a value of {values[too_large[0]]:g}, too large for float16 (at most {half.max:g}); "
            "use --values float24 or float32"
        )
    return np.maximum(values.astype(np.float16), half.smallest_subnormal)


def writer_options(schema: Any) -> dict[str, Any]:
    """The options of pyarrow's ParquetWriter for a schema.

    Numbers of 4 and 8 bytes are split into streams of their bytes (BYTE_STREAM_SPLIT), which zstd compresses one by
    one. That is smaller than DELTA_BINARY_PACKED by a fifth for indices, and than dictionaries. float16 stays plain,
    because DuckDB reads no split float16. Texts have dictionaries. Pages have checksums, so that an altered one is
    noticed.

    >>> import pyarrow
    >>> list(writer_options(pyarrow.schema([("doc", pyarrow.int32())]))["column_encoding"])
    ['doc']
    """
    from pyarrow import types

    split, others = {}, []
    for field in schema:
        is_list = types.is_list(field.type)
        kind = field.type.value_type if is_list else field.type
        path = f"{field.name}.list.element" if is_list else field.name
        if types.is_int32(kind) or types.is_int64(kind) or types.is_float32(kind) or types.is_float64(kind):
            split[path] = "BYTE_STREAM_SPLIT"
        elif types.is_string(kind) or types.is_large_string(kind):
            others.append(path)
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": others or False,
        "column_encoding": split,
        "write_page_checksum": True,
    }
