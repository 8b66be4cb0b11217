"""The files of a store: their names, the columns of its tables, and the description in `store.json`.

| file | content |
|---|---|
| `store.json` | the description below; written last |
| `features.parquet` | a row a feature, in order: its numbers, and where its contexts are |
| `contexts.parquet` | a row a context, sorted by feature, then by band, then by falling value |
| `vocabulary.parquet` | names of the tokens, where they are known |
| `labels.jsonl` | labels that people gave or imported; they may edit it, so it has no hash and is read afresh |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.manifest import FileRecord

STORE = "store.json"
FEATURES = "features.parquet"
CONTEXTS = "contexts.parquet"
VOCABULARY = "vocabulary.parquet"
NAMES = (STORE, FEATURES, CONTEXTS, VOCABULARY, LABELS)
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StoredFile(FileRecord):
    """Size and sha256 of a file, and the sha256 of its footer, which opening a store compares."""

    footer_sha256: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """`store.json`: the origin of a store and how it was made.

    Attributes:
        format_version: of these files.
        per: "token" or "document", what a row of the features is.
        model: name of the host model.
        hook: where the activations are.
        sae: name of the SAE in a model that has several.
        weights_sha256: of the SAE's weights.
        features_sha256: sha256 of the index of the features folder, its fingerprint.
        d_sae: number of features.
        tokens: number of rows, tokens or documents.
        documents: number of documents.
        matches: number of active pairs of row and feature.
        values: type of the values in the features folder.
        context: tokens of a context.
        bands: number of quantile bands.
        per_band: contexts of the top band, and of each other one.
        bins: of the histograms.
        same_text: tokens on each side of a peak that make two contexts the same text when they are equal.
        sampled: tokens that co-firing was counted on, every how many one; null where it was not counted.
        left_out: what the store lacks, and why, in sentences.
        licence: of the corpus, where the features folder says so.
        files: by name.
        active: number of rows with 0, 1, 2, ... active features; null in stores of older versions.
        by_file: number of documents of each file of texts, the files with most documents first; null where the features
            folder knows no documents, and in stores of older versions.
        by_licence: number of documents of each licence likewise.
    """

    format_version: int
    per: str
    model: str | None
    hook: str | None
    sae: str | None
    weights_sha256: str
    features_sha256: str
    d_sae: int
    tokens: int
    documents: int
    matches: int
    values: str
    context: int
    bands: int
    per_band: tuple[int, ...]
    bins: int
    same_text: int
    sampled: Mapping[str, int] | None
    left_out: tuple[str, ...]
    licence: str | None
    files: Mapping[str, StoredFile]
    active: tuple[int, ...] | None = None
    by_file: Mapping[str, int] | None = None
    by_licence: Mapping[str, int] | None = None


def feature_schema() -> Any:
    """The Arrow schema of `features.parquet`.

    >>> feature_schema().names[:5]
    ['feature', 'count', 'density', 'mean', 'max']
    """
    import pyarrow as pa

    token = pa.list_(
        pa.struct([("token", pa.int32()), ("text", pa.string()), ("count", pa.int64()), ("mean", pa.float32())])
    )
    other = pa.list_(pa.struct([("feature", pa.int32()), ("value", pa.float32())]))
    logit = pa.list_(pa.struct([("token", pa.int32()), ("text", pa.string()), ("logit", pa.float32())]))
    band = pa.list_(pa.struct([("low", pa.float32()), ("high", pa.float32()), ("count", pa.int64())]))
    numbers = [("feature", pa.int32()), ("count", pa.int64()), ("density", pa.float64()), ("mean", pa.float64())]
    numbers += [("max", pa.float32()), ("histogram", pa.list_(pa.int64())), ("bands", band), ("top_tokens", token)]
    numbers += [("neighbours", other), ("together", other), ("promoted", logit), ("suppressed", logit)]
    return pa.schema([*numbers, ("contexts_begin", pa.int64()), ("contexts", pa.int32())])


def context_schema(id_type: Any) -> Any:
    """The Arrow schema of `contexts.parquet`; documents have ids of a type of their own, int64 or string.

    `tokens`, `begins`, `ends` and `values` have a number for each token of the context: its id (-1: unknown), its first
    character and the one after its last in `text`, and the activation.

    >>> import pyarrow
    >>> context_schema(pyarrow.string()).names[:5]
    ['feature', 'band', 'value', 'doc', 'peak']
    """
    import pyarrow as pa

    integer, integers = pa.int32(), pa.list_(pa.int32())
    columns = [("feature", integer), ("band", pa.int8()), ("value", pa.float32()), ("doc", integer), ("peak", integer)]
    columns += [("tokens", integers), ("begins", integers), ("ends", integers), ("values", pa.list_(pa.float32()))]
    columns += [("text", pa.string()), ("begin", integer), ("end", integer)]
    return pa.schema([*columns, ("file", pa.string()), ("row", pa.int64()), ("id", id_type), ("licence", pa.string())])
