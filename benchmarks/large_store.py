"""A made-up feature store of any size, written directly: what a store of an SAE with many features weighs."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from sae_runtime.bundle.parts import record
from sae_runtime.store.schema import (
    CONTEXTS,
    FEATURES,
    FORMAT_VERSION,
    STORE,
    VOCABULARY,
    Description,
    StoredFile,
    context_schema,
    feature_schema,
)
from sae_runtime.store.table_files import footer_sha256

_TOKENS, _BANDS, _PER_BAND, _BINS = 64, 5, (20, 5, 5, 5, 5), 20
_CONTEXTS = sum(_PER_BAND)  # of each feature
_TEXTS, _WORDS, _AT_ONCE = 4096, 20_000, 1024  # texts, words, features that are written at once
_CORPUS = 10_000_000  # tokens


def write_large_store(folder: Path, d_sae: int) -> Path:
    """A store of so many features with 40 contexts of 64 tokens each, of which three are active."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(letters[rng.integers(26, size=rng.integers(2, 9))]) for _ in range(_WORDS)]
    texts, begins, ends = _texts(rng, words)
    features = pyarrow.parquet.ParquetWriter(
        folder / FEATURES, feature_schema(), compression="zstd", write_page_checksum=True
    )
    contexts = pyarrow.parquet.ParquetWriter(
        folder / CONTEXTS, context_schema(pa.string()), compression="zstd", write_page_checksum=True
    )
    density = np.asarray(0.2 / (np.arange(d_sae) + 5) ** 0.8, np.float64)
    with features, contexts:
        for low in range(0, d_sae, _AT_ONCE):
            size = min(_AT_ONCE, d_sae - low)
            features.write_table(_features(rng, words, low, density[low : low + size], d_sae), row_group_size=256)
            contexts.write_table(_contexts(rng, low, size, texts, begins, ends), row_group_size=1024)
    names = pa.table({"token": pa.array(range(_WORDS), pa.int32()), "text": words})
    pyarrow.parquet.write_table(names, folder / VOCABULARY, write_page_checksum=True)
    files = {
        name: StoredFile(**asdict(record(folder / name)), footer_sha256=footer_sha256(folder / name))
        for name in (FEATURES, CONTEXTS, VOCABULARY)
    }
    described = Description(
        format_version=FORMAT_VERSION,
        per="token",
        model="made up",
        hook="h.3",
        sae=None,
        weights_sha256="0" * 64,
        features_sha256="0" * 64,
        d_sae=d_sae,
        tokens=_CORPUS,
        documents=_TEXTS,
        matches=int(density.sum() * _CORPUS),
        values="float32",
        context=_TOKENS,
        bands=_BANDS,
        per_band=_PER_BAND,
        bins=_BINS,
        same_text=8,
        sampled=None,
        left_out=(),
        licence="made up",
        files=files,
    )
    (folder / STORE).write_text(json.dumps(asdict(described)))
    return folder


def _texts(rng: np.random.Generator, words: list[str]) -> tuple[pa.Array, NDArray[np.int32], NDArray[np.int32]]:
    """Texts of 64 words, and where these begin and end: [texts, 64]."""
    chosen = rng.integers(_WORDS, size=(_TEXTS, _TOKENS))
    lengths = np.array([len(word) for word in words])[chosen]
    ends = np.cumsum(lengths + 1, axis=1) - 1
    texts = pa.array([" ".join(words[word] for word in row) for row in chosen.tolist()])
    return texts, (ends - lengths).astype(np.int32), ends.astype(np.int32)


def _contexts(
    rng: np.random.Generator,
    low: int,
    size: int,
    texts: pa.Array,
    begins: NDArray[np.int32],
    ends: NDArray[np.int32],
) -> pa.Table:
    rows = size * _CONTEXTS
    text = rng.integers(_TEXTS, size=rows)
    values = np.zeros((rows, _TOKENS), np.float32)
    value = np.tile(np.linspace(8, 0.5, _CONTEXTS, dtype=np.float32), size)
    peak = rng.integers(_TOKENS, size=rows).astype(np.int32)
    for share in (0.3, 0.6, 1.0):
        place = peak if share == 1 else rng.integers(_TOKENS, size=rows)
        values[np.arange(rows), place] = value * np.float32(share)
    offsets = pa.array(np.arange(rows + 1) * _TOKENS, pa.int32())

    def lists(numbers: NDArray[np.generic]) -> pa.ListArray:
        return pa.ListArray.from_arrays(offsets, pa.array(numbers.ravel()))

    band = np.repeat(np.arange(_BANDS), _PER_BAND)
    columns = {
        "feature": np.repeat(np.arange(low, low + size, dtype=np.int32), _CONTEXTS),
        "band": np.tile(band.astype(np.int8), size),
        "value": value,
        "doc": text.astype(np.int32),
        "peak": peak,
        "tokens": lists(rng.integers(_WORDS, size=(rows, _TOKENS)).astype(np.int32)),
        "begins": lists(begins[text]),
        "ends": lists(ends[text]),
        "values": lists(values),
        "text": texts.take(pa.array(text)),
        "begin": np.zeros(rows, np.int32),
        "end": ends[text, -1],
        "file": pa.array(["made.jsonl"]).take(pa.array(np.zeros(rows, np.int64))),
        "row": text,
        "id": pa.nulls(rows, pa.string()),
        "licence": pa.nulls(rows, pa.string()),
    }
    schema = context_schema(pa.string())
    return pa.table(
        [pa.array(columns[name]) if isinstance(columns[name], np.ndarray) else columns[name] for name in schema.names],
        schema=schema,
    )


def _features(
    rng: np.random.Generator, words: list[str], low: int, density: NDArray[np.float64], d_sae: int
) -> pa.Table:
    rows = []
    for place, share in enumerate(density.tolist()):
        count = max(int(share * _CORPUS), 100)
        tokens, others = rng.integers(_WORDS, size=10).tolist(), rng.integers(d_sae, size=20).tolist()
        pairs = [{"feature": other, "value": 0.9 - 0.03 * rank} for rank, other in enumerate(others[:10])]
        rows.append(
            {
                "feature": low + place,
                "count": count,
                "density": count / _CORPUS,
                "mean": 2.0,
                "max": 8.0,
                "histogram": [count // _BINS] * _BINS,
                "bands": [{"low": 4 - band, "high": 8 - band, "count": count // _BANDS} for band in range(_BANDS)],
                "top_tokens": [{"token": t, "text": words[t], "count": 9, "mean": 3.25} for t in tokens],
                "neighbours": pairs,
                "together": [{"feature": other, "value": 0.25} for other in others[10:]],
                "promoted": None,
                "suppressed": None,
                "contexts_begin": (low + place) * _CONTEXTS,
                "contexts": _CONTEXTS,
            }
        )
    return pa.Table.from_pylist(rows, feature_schema())
