"""A small feature store whose contents a test chooses, written without the code that builds stores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from sae_runtime.store.schema import context_schema, feature_schema

DESCRIPTION: Mapping[str, Any] = {
    "format_version": 1,
    "per": "token",
    "model": "gpt2",
    "hook": "blocks.6.hook_resid_pre",
    "sae": None,
    "weights_sha256": "0" * 64,
    "features_sha256": "1" * 64,
    "tokens": 1000,
    "documents": 10,
    "matches": 40,
    "values": "float32",
    "context": 8,
    "bands": 2,
    "per_band": [2, 1],
    "bins": 4,
    "same_text": 3,
    "sampled": None,
    "left_out": ["promoted tokens: the bundle has none"],
    "licence": "MIT",
}


def context(text: str, peak: str, value: float, *, band: int = 0, **more: Any) -> dict[str, Any]:
    """The row of a context: its tokens are the words of the text, and `peak` is the active one."""
    words = text.split()
    begins: list[int] = []
    for word in words:
        begins.append(text.index(word, begins[-1] + 1 if begins else 0))
    at = words.index(peak)
    row = {"band": band, "value": value, "doc": 0, "peak": at, "tokens": list(range(len(words))), "begins": begins}
    row |= {"ends": [begin + len(word) for begin, word in zip(begins, words, strict=True)], "text": text, "begin": 0}
    row |= {"values": [value * (word == peak) for word in words], "end": len(text), "file": "data/a.jsonl", "row": 7}
    return row | {"id": "doc-7", "licence": "MIT"} | more


def feature(contexts: Sequence[Mapping[str, Any]] = (), **more: Any) -> dict[str, Any]:
    """The row of a feature with these contexts, on top of one that is active on ten tokens."""
    row = {"count": 10, "density": 0.01, "mean": 2.0, "max": 4.0, "histogram": [4, 3, 2, 1]}
    row |= {"bands": [{"low": 2.0, "high": 4.0, "count": 5}, {"low": 0.5, "high": 2.0, "count": 5}]}
    lists: dict[str, Any] = dict.fromkeys(("neighbours", "together", "promoted", "suppressed"))
    return row | {"top_tokens": []} | lists | {"rows": list(contexts)} | more


def never_active() -> dict[str, Any]:
    """The row of a feature that is active on no token."""
    return feature(count=0, density=0.0, mean=0.0, max=0.0, histogram=[0] * 4, bands=[])


def token(text: str, count: int = 5, mean: float = 2.0) -> dict[str, Any]:
    """A top token."""
    return {"token": 0, "text": text, "count": count, "mean": mean}


def write_store(
    folder: Path, features: Sequence[Mapping[str, Any]], vocabulary: Sequence[str] = ("a", "b", "c"), **description: Any
) -> Path:
    """Write a store of these features; the description has these other values."""
    folder.mkdir(parents=True)
    rows, contexts, begin = [], [], 0
    for number, one in enumerate(features):
        inside = [dict(row) | {"feature": number} for row in one["rows"]]
        rows.append({name: value for name, value in one.items() if name != "rows"})
        rows[-1] |= {"feature": number, "contexts_begin": begin, "contexts": len(inside)}
        contexts += inside
        begin += len(inside)
    ids = np.arange(len(vocabulary), dtype=np.int32)
    tables = {
        "features.parquet": pyarrow.Table.from_pylist(rows, feature_schema()),
        "contexts.parquet": pyarrow.Table.from_pylist(contexts, context_schema(pyarrow.string())),
        "vocabulary.parquet": pyarrow.table({"token": ids, "text": list(vocabulary)}),
    }
    files = {}
    for name, table in tables.items():
        pyarrow.parquet.write_table(table, folder / name, row_group_size=64, write_page_checksum=True)
        files[name] = _record(folder / name)
    described = {**DESCRIPTION, "d_sae": len(features), **description, "files": files}
    (folder / "store.json").write_text(json.dumps(described))
    return folder


def _record(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    hashes = {"sha256": hashlib.sha256(content).hexdigest(), "footer_sha256": hashlib.sha256(footer).hexdigest()}
    return {"size": len(content), **hashes}
