"""Sparse features of many tokens as Parquet: one row per token, columns doc, pos, token, indices and values."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sae_runtime.activations import Activations, check_source
from sae_runtime.bundle import WEIGHTS
from sae_runtime.extras import require
from sae_runtime.features import Features
from sae_runtime.files import check_free, new_file
from sae_runtime.sae import SAE

FORMAT_VERSION = 1
ROW_GROUP = 65_536  # tokens
_CHUNK = 4_096  # tokens read and encoded at once; divides ROW_GROUP
_ENCODINGS = {
    "doc": "DELTA_BINARY_PACKED",
    "pos": "DELTA_BINARY_PACKED",
    "token": "DELTA_BINARY_PACKED",
    "indices.list.element": "DELTA_BINARY_PACKED",  # ascending in every row
    "values.list.element": "BYTE_STREAM_SPLIT",
}


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What a file of features holds: its tokens, the matches of all of them, and its size in bytes."""

    tokens: int
    matches: int
    size: int


def extract(
    sae: SAE,
    activations: Activations,
    out: Path,
    *,
    rule: Literal["served", "batch"] = "served",
    values: Literal["float32", "float16"] = "float32",
    any_source: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Extracted:
    """Write the features of every token to a Parquet file, which appears whole or not at all.

    Columns: doc, pos and token (int32; for activations that do not know theirs 0, the number of the row, and null),
    indices (list of int32, ascending) and values (list of `values`, all positive). The file's key-value metadata holds
    a JSON description under `sae_runtime`.

    Args:
        sae: what to encode with.
        activations: read and encoded piece by piece.
        out: the file.
        rule: as in `SAE.encode`; "batch" spends one budget over all of the activations.
        values: type of the values on disk.
        any_source: go on where the activations come from another model or hook than those the SAE was fitted on.
        force: replace a file that stands there already.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the activations are of another width or source, hold NaN or Inf, or a value is too large for
            float16.
        FileExistsError: `out` exists and `force` is not set, or is a folder.
    """
    require("extract")
    import pyarrow.parquet

    if rule not in ("served", "batch"):
        raise ValueError(f"rule must be 'served' or 'batch', got {rule!r}")
    if values not in ("float32", "float16"):
        raise ValueError(f"values must be 'float32' or 'float16', got {values!r}")
    check_file(out, force=force)
    check_source(activations, sae.manifest, any_source=any_source)
    schema = _schema(sae, activations, rule, values)
    matches = 0
    with new_file(out, force=force) as partial:
        # disable=None hides the bar where stderr is no terminal.
        bar = tqdm(total=len(activations), unit="token", unit_scale=True, disable=None if progress else True)
        writer = pyarrow.parquet.ParquetWriter(
            partial, schema, compression="zstd", use_dictionary=False, column_encoding=_ENCODINGS
        )
        with bar, writer:
            batches = []
            for begin, features in _encoded(sae, activations, rule, bar):
                batches.append(_batch(activations, begin, features, schema))
                matches += len(features.indices)
                end = begin + len(features)
                if end % ROW_GROUP == 0 or end == len(activations):
                    writer.write_table(pyarrow.Table.from_batches(batches, schema), row_group_size=ROW_GROUP)
                    batches = []
    return Extracted(tokens=len(activations), matches=matches, size=out.stat().st_size)


def check_file(out: Path, *, force: bool) -> None:
    """Raise FileExistsError unless a file may be written to `out`."""
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder; name a file in it")
    check_free(out, force=force)


def _encoded(
    sae: SAE, activations: Activations, rule: Literal["served", "batch"], bar: "tqdm[Any]"
) -> Iterator[tuple[int, Features]]:
    """Features of the activations in order, _CHUNK tokens at a time, each with the number of its first token."""
    if rule == "batch" and sae.manifest.allocation.kind != "token":
        yield from _jointly_encoded(sae, activations, bar)
        return
    for begin in range(0, len(activations), _CHUNK):
        x = activations.slice(begin, min(begin + _CHUNK, len(activations)))
        try:
            features = sae.encode(x)
        except ValueError as error:  # which counts rows from the first of x
            raise ValueError(f"{activations.path}, from row {begin} on: {error}") from error
        bar.update(len(x))
        yield begin, features


def _jointly_encoded(sae: SAE, activations: Activations, bar: "tqdm[Any]") -> Iterator[tuple[int, Features]]:
    """The same by the batch rule, for which every token is read before the first features are known."""

    def read(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        bar.update(min(len(ids), len(activations) - bar.n))  # some rows are read again in the end
        return activations.rows(ids)

    joint = sae.encode_batch(read, len(activations))
    for begin in range(0, len(activations), _CHUNK):
        yield begin, _part(joint, begin, min(begin + _CHUNK, len(activations)))


def _part(features: Features, begin: int, end: int) -> Features:
    indptr = features.indptr[begin : end + 1]
    matches = slice(int(indptr[0]), int(indptr[-1]))
    return Features(
        indptr - indptr[0], features.indices[matches], features.values[matches], features.d_sae, (end - begin,)
    )


def _schema(sae: SAE, activations: Activations, rule: str, values: str) -> Any:
    import pyarrow

    manifest = sae.manifest
    description = {
        "format_version": FORMAT_VERSION,
        "encoder": dataclasses.asdict(manifest.encoder),
        "allocation": dataclasses.asdict(manifest.allocation),
        "model": manifest.model,
        "hook": manifest.hook,
        "weights_sha256": manifest.files[WEIGHTS].sha256,
        "rule": rule,
        "values": values,
        "activations": activations.path.name,
        "tokens": len(activations),
    }
    number = pyarrow.float32() if values == "float32" else pyarrow.float16()
    columns = [(name, pyarrow.int32()) for name in ("doc", "pos", "token")]
    columns += [("indices", pyarrow.list_(pyarrow.int32())), ("values", pyarrow.list_(number))]
    return pyarrow.schema(columns, {"sae_runtime": json.dumps(description)})


def _batch(activations: Activations, begin: int, features: Features, schema: Any) -> Any:
    """The features as Arrow; indices, and values where they are float32, share their memory."""
    import pyarrow

    end, integer = begin + len(features), pyarrow.int32()
    doc, pos, token = activations.documents, activations.positions, activations.tokens
    numbers: NDArray[Any] = features.values
    if schema.field("values").type.value_type == pyarrow.float16():
        numbers = _half(features, begin)
    offsets = pyarrow.array(features.indptr, integer)  # checked: an offset beyond int32 is an error
    columns = [
        pyarrow.array(np.zeros(end - begin, np.int32) if doc is None else doc[begin:end]),
        pyarrow.array(np.arange(begin, end) if pos is None else pos[begin:end], integer),
        pyarrow.nulls(end - begin, integer) if token is None else pyarrow.array(token[begin:end]),
        pyarrow.ListArray.from_arrays(offsets, pyarrow.array(features.indices)),
        pyarrow.ListArray.from_arrays(offsets, pyarrow.array(numbers)),
    ]
    return pyarrow.record_batch(columns, schema=schema)


def _half(features: Features, begin: int) -> NDArray[np.float16]:
    largest = np.finfo(np.float16).max
    too_large = np.flatnonzero(features.values > largest)
    if len(too_large):
        row = begin + int(np.searchsorted(features.indptr, too_large[0], side="right")) - 1
        raise ValueError(
            f"row {row} has a value of {features.values[too_large[0]]:g}, too large for float16 (at most {largest:g}); "
            "use float32 (--values float32)"
        )
    smallest = np.finfo(np.float16).smallest_subnormal
    return np.maximum(features.values.astype(np.float16), smallest)  # a match does not become 0
