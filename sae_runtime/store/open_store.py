"""Read a feature store, with numpy and pyarrow alone: no model, no bundle, no builder."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.identity import Identity, identity
from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.labels import label_lines
from sae_runtime.bundle.siblings import repaired
from sae_runtime.core.labels import Labels, as_feature, shown
from sae_runtime.store.contexts_table import array_of, as_contexts, of_each_band, token_name
from sae_runtime.store.descriptions import check_weights, read_description
from sae_runtime.store.records import StoredFeature
from sae_runtime.store.row_stream import RowStream
from sae_runtime.store.schema import (
    CONTEXTS,
    FEATURES,
    VOCABULARY,
    Description,
    context_schema,
    feature_schema,
)
from sae_runtime.store.soundness import are_contexts, has_values, is_feature
from sae_runtime.store.stored_rows import stored_feature
from sae_runtime.store.table_files import open_table, reading, unsound

if TYPE_CHECKING:
    from sae_runtime.store.search import Hit

_AT_ONCE = 128  # features that are read at once
_NAMED = 3  # top tokens that name a feature without a label


def open_store(path: str | Path, *, sae: str | Path | None = None, verify: bool = False) -> "Store":
    """Open the store that `build_store` or `sae-runtime features build` wrote.

    Args:
        path: the folder.
        sae: a bundle whose features the store must be of.
        verify: compare the sha256 of every file. Otherwise sizes and the tables' footers are compared here, and the
            checksum of each page when it is read.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: a file may not be read.
        ValueError: the folder is no store, is of another version or of other weights, or a file of it is missing or
            altered.

    >>> store = open_store(store_path)
    >>> len(store), store.feature(3).count == store.count[3]
    (150, np.True_)
    """
    require("extract")
    folder = repaired(Path(path))
    description = read_description(folder)
    if sae is not None:
        check_weights(description.weights_sha256, sae, folder)
    return Store(folder, description, verify=verify)


class Store:
    """An open store. A feature is read from the disk when it is asked for; threads may share a store.

    Attributes:
        path: the folder.
        description: `store.json`.
        count: number of rows on which each feature is active, int64 [d_sae].
        density: share of these rows, float64 [d_sae].
        max: largest activation of each feature, float32 [d_sae].

    >>> store = open_store(store_path)
    >>> store[3].density == store.density[3]
    np.True_
    """

    def __init__(self, path: Path, description: Description, *, verify: bool) -> None:
        """Open the tables; `open_store` is for callers."""
        import pyarrow

        self.path, self.description = path, description
        self._features = open_table(path, FEATURES, description.files[FEATURES], verify=verify)
        self._contexts = open_table(path, CONTEXTS, description.files[CONTEXTS], verify=verify)
        self._names = open_table(path, VOCABULARY, description.files[VOCABULARY], verify=verify)
        found = self._contexts.schema_arrow
        wanted = context_schema(pyarrow.int64() if pyarrow.field("id", pyarrow.int64()) in found else pyarrow.string())
        names = pyarrow.schema([("token", pyarrow.int32()), ("text", pyarrow.string())])
        tables = ((self._features, FEATURES, feature_schema()), (self._contexts, CONTEXTS, wanted))
        for table, name, schema in (*tables, (self._names, VOCABULARY, names)):
            if not table.schema_arrow.equals(schema):
                raise ValueError(f"{path / name} has other columns than this sae-runtime writes; build the store again")
        if self._features.metadata.num_rows != description.d_sae:
            raise ValueError(f"{path / FEATURES} does not have one row for each feature; build the store again")
        numbers = self.table(["feature", "count", "density", "max"])
        self.count, self.density, self.max = (array_of(numbers[name]) for name in ("count", "density", "max"))
        if not np.array_equal(array_of(numbers["feature"]), np.arange(description.d_sae)):
            raise ValueError(f"{path / FEATURES} does not have its features in order; build the store again")

    def __len__(self) -> int:
        return self.description.d_sae

    def __repr__(self) -> str:
        of = self.description
        return f"Store({self.path}, {of.d_sae:,} features over {of.tokens:,} {of.per}s)"

    def __iter__(self) -> Iterator[StoredFeature]:
        return self.features()

    def __getitem__(self, feature: int | str) -> StoredFeature:
        return self.feature(feature)

    @property
    def labels(self) -> Labels:
        """The labels that people gave or imported, as `labels.jsonl` has them now."""
        return _labels(self.path / LABELS, len(self), identity(self.path / LABELS))[0]

    def feature(self, feature: int | str) -> StoredFeature:
        """All that the store knows of a feature.

        Args:
            feature: its number or its label.

        Raises:
            ValueError: there is no such feature or label, or the store was altered.

        >>> open_store(store_path).feature("3").feature
        3
        """
        number = self.number(feature)
        row = self._slice(FEATURES, number, 1).to_pylist()[0]
        if not is_feature(row, self.description, self._contexts.metadata.num_rows):
            raise unsound(self.path / FEATURES)
        count = row["contexts"]
        table = (
            self._slice(CONTEXTS, row["contexts_begin"], count) if count else self._contexts.schema_arrow.empty_table()
        )
        return self._stored([row], table)[0]

    def features(
        self, begin: int = 0, end: int | None = None, *, per_band: Sequence[int] | None = None
    ) -> Iterator[StoredFeature]:
        """The features from one to before another, as `feature` gives them, by reading the store once from end to end.

        Memory holds some hundred features and their contexts.

        Args:
            begin: the first feature.
            end: the feature after the last; None: all that follow.
            per_band: contexts of each band at most, the largest ones; the last number is of all bands that follow.
                None: all.

        Raises:
            ValueError: there is no such feature, or the store was altered.

        >>> [feature.feature for feature in open_store(store_path).features(3, 6)]
        [3, 4, 5]
        """
        end = len(self) if end is None else end
        if not 0 <= begin <= end <= len(self):
            raise ValueError(f"features go from 0 to {len(self)}, got {begin} to {end}")
        import pyarrow

        rows, contexts = RowStream(self._features, begin), None
        read = 0  # the row after the contexts that were read
        for low in range(begin, end, _AT_ONCE):
            with reading(self.path / FEATURES):
                table = rows.take(low, min(_AT_ONCE, end - low))
            if not has_values(table):
                raise unsound(self.path / FEATURES)
            records = table.to_pylist()
            for row in records:  # contexts are sorted by feature, so that one walk through them meets all
                known = is_feature(row, self.description, self._contexts.metadata.num_rows)
                if not known or (row["contexts"] and row["contexts_begin"] < read):
                    raise unsound(self.path / FEATURES)
                read = row["contexts_begin"] + row["contexts"] if row["contexts"] else read
            places = [(row["contexts_begin"], row["contexts"]) for row in records if row["contexts"]]
            with reading(self.path / CONTEXTS):
                if contexts is None and places:
                    contexts = RowStream(self._contexts, places[0][0])
                pieces = [contexts.take(*place) for place in places if contexts is not None]
                table = pyarrow.concat_tables([self._contexts.schema_arrow.empty_table(), *pieces]).combine_chunks()
            yield from self._stored(records, table, per_band)

    def label(self, feature: int) -> tuple[str | None, str | None]:
        """The label of a feature and where it comes from, as in `StoredFeature`.

        >>> open_store(store_path).label(3)[1]
        'top tokens'
        """
        row = self._slice(FEATURES, self.number(feature), 1, ["top_tokens"]).to_pylist()[0]
        return self._label(feature, row["top_tokens"])

    def number(self, feature: int | str) -> int:
        """The number of a feature that is named by its number or its label.

        >>> open_store(store_path).number("12")
        12
        """
        named = as_feature(feature) if isinstance(feature, str) else feature
        if isinstance(named, str):
            if not self.labels:
                raise ValueError(
                    f"{shown(named)} is a label, and people gave none in {self.labels.source}; name the feature by its "
                    "number, which features search finds by words"
                )
            return self.labels.feature(named)
        if not isinstance(named, Integral) or isinstance(named, bool):
            raise ValueError(f"a feature goes by its number or its label, got {feature!r}")
        if not 0 <= named < len(self):
            raise ValueError(f"feature {named} does not exist, expected 0 to {len(self) - 1}")
        return int(named)

    def token_name(self, token: int) -> str:
        """The name of a token by its id.

        >>> open_store(store_path).token_name(-1)
        '?'
        """
        return token_name(token, self._vocabulary)

    def search(self, query: str, limit: int = 20) -> "list[Hit]":
        """The features that words are about, the best first; `store.search.search` says how.

        >>> open_store(store_path).search("no such words")
        []
        """
        from sae_runtime.store.search import search

        return search(self, query, limit)

    def table(self, columns: Sequence[str]) -> Any:
        """Columns of all features as a pyarrow table; `schema.feature_schema` names them.

        >>> open_store(store_path).table(["count"]).num_rows
        150
        """
        with reading(self.path / FEATURES):
            table = self._features.read(columns=list(columns))
        if not has_values(table):
            raise unsound(self.path / FEATURES)
        return table

    def context_batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Columns of all contexts as pyarrow record batches, in order; `schema.context_schema` names them.

        >>> sum(len(batch) for batch in open_store(store_path).context_batches(["feature"])) > 150
        True
        """
        with reading(self.path / CONTEXTS):
            for batch in self._contexts.iter_batches(columns=list(columns)):
                if not has_values(batch) or ("feature" in columns and not self._has(np.from_dlpack(batch["feature"]))):
                    raise unsound(self.path / CONTEXTS)
                yield batch

    def _has(self, features: NDArray[Any]) -> bool:
        return not len(features) or bool(features.min() >= 0 and features.max() < len(self))

    def _stored(
        self, rows: Sequence[Mapping[str, Any]], contexts: Any, per_band: Sequence[int] | None = None
    ) -> list[StoredFeature]:
        """The features of rows, whose contexts are the rows of a table, feature by feature."""
        counts = [row["contexts"] for row in rows]
        feature = np.repeat([row["feature"] for row in rows], counts)
        bands = np.repeat([len(row["bands"]) for row in rows], counts)
        if not has_values(contexts) or not are_contexts(contexts, feature, bands):
            raise unsound(self.path / CONTEXTS)
        if per_band is not None and len(contexts):
            kept = of_each_band(feature, array_of(contexts["band"]), per_band)
            contexts = contexts.filter(kept.tolist())
            counts = np.bincount(feature[kept] - rows[0]["feature"], minlength=len(rows)).tolist()
        ends = np.cumsum(counts)
        made = as_contexts(contexts, self._vocabulary if len(contexts) else {})
        return [
            stored_feature(row, *self._label(row["feature"], row["top_tokens"]), made[end - count : end])
            for row, count, end in zip(rows, counts, ends.tolist(), strict=True)
        ]

    def _slice(self, name: str, begin: int, count: int, columns: Sequence[str] | None = None) -> Any:
        """So many rows of a table, at least one, from a row on."""
        table, starts = (self._features if name == FEATURES else self._contexts), self._group_starts[name]
        first, last = (int(np.searchsorted(starts, row, side="right")) - 1 for row in (begin, begin + count - 1))
        with reading(self.path / name):
            found = table.read_row_groups(range(first, last + 1), columns=columns)
            found = found.slice(begin - int(starts[first]), count)
            if not has_values(found):
                raise unsound(self.path / name)
            return found

    @functools.cached_property
    def _vocabulary(self) -> Mapping[int, str]:
        with reading(self.path / VOCABULARY):
            table = self._names.read()
            return dict(zip(table["token"].to_pylist(), table["text"].to_pylist(), strict=True))

    @functools.cached_property
    def _group_starts(self) -> Mapping[str, NDArray[np.int64]]:
        """The first row of each row group, of both tables."""
        starts = {}
        for name, table in ((FEATURES, self._features), (CONTEXTS, self._contexts)):
            groups = table.metadata
            sizes = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
            starts[name] = np.cumsum([0, *sizes], dtype=np.int64)[:-1]
        return starts

    def _label(self, feature: int, top_tokens: list[dict[str, Any]]) -> tuple[str | None, str | None]:
        labels, sources = _labels(self.path / LABELS, len(self), identity(self.path / LABELS))
        if feature in labels:
            return labels[feature], sources[feature]
        texts: list[str] = []
        for token in top_tokens:
            if (text := token["text"].strip()) and text.casefold() not in [known.casefold() for known in texts]:
                texts.append(text)
        return (", ".join(texts[:_NAMED]), "top tokens") if texts else (None, None)


@functools.lru_cache(maxsize=8)
def _labels(path: Path, d_sae: int, _now: Identity | None) -> tuple[Labels, dict[int, str]]:
    """Labels and their sources. A line may name its source; without one, a person wrote it."""
    lines = label_lines(path, d_sae)
    sources = {
        feature: line["source"].strip() if isinstance(line.get("source"), str) and line["source"].strip() else "person"
        for feature, line in lines.items()
    }
    return Labels({feature: line["label"] for feature, line in lines.items()}, source=str(path)), sources
