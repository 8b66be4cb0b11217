"""Read a feature store, with numpy and pyarrow alone: no model, no bundle, no builder."""

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.extras import require
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.identity import Identity, identity
from sae_runtime.bundle.labels import FILE as LABELS
from sae_runtime.bundle.labels import label_lines
from sae_runtime.bundle.parts import WEIGHTS, check_file, read_manifest
from sae_runtime.bundle.regular import open_regular
from sae_runtime.bundle.siblings import repaired
from sae_runtime.bundle.typed_json import read_file
from sae_runtime.core.labels import Labels, as_feature, shown
from sae_runtime.store.contexts_table import as_contexts, of_each_band, token_name
from sae_runtime.store.records import StoredFeature
from sae_runtime.store.row_stream import RowStream
from sae_runtime.store.schema import (
    CONTEXTS,
    FEATURES,
    FORMAT_VERSION,
    STORE,
    VOCABULARY,
    Description,
    context_schema,
    feature_schema,
)
from sae_runtime.store.soundness import are_contexts, has_values, is_feature
from sae_runtime.store.stored_rows import stored_feature

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


def read_description(folder: Path) -> Description:
    """The description of a store.

    Raises:
        ValueError: the folder is no store, or one of another version.

    >>> read_description(Path(store_path)).d_sae
    150
    """
    if not folder.is_dir() or identity(folder / STORE) is None:
        problem = f"holds no {STORE}" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}, so it is no feature store; make one: sae-runtime features build")
    refuse_link_out(folder / STORE, folder)
    description: Description = read_file(Description, folder / STORE, version=FORMAT_VERSION, field="format_version")
    if missing := [name for name in (FEATURES, CONTEXTS, VOCABULARY) if name not in description.files]:
        raise ValueError(f"{folder / STORE} does not list {missing[0]}; build the store again")
    sizes = (description.d_sae, description.bins, description.bands, description.context, *description.per_band)
    sound = min(sizes) > 0 and len(description.per_band) == description.bands and description.tokens >= 0
    active, documents = description.active or (), {**(description.by_file or {}), **(description.by_licence or {})}
    sound = sound and len(active) <= description.d_sae + 1 and min([*active, *documents.values()], default=0) >= 0
    if not sound or description.per not in ("token", "document"):
        raise ValueError(f"{folder / STORE} has numbers that no store has; build the store again")
    return description


def check_weights(expected: str, sae: str | Path, of: Path) -> None:
    """Raise ValueError if a bundle has other weights than those that a folder's features come from.

    >>> check_weights("0" * 64, bundle_path, Path("store"))
    Traceback (most recent call last):
    ValueError: store has the features of other weights than ...; name the bundle that its features come from
    """
    found = read_manifest(Path(sae)).files[WEIGHTS].sha256
    if found != expected:
        raise ValueError(
            f"{of} has the features of other weights than {sae}; name the bundle that its features come from"
        )


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
        self._features = self._table(FEATURES, verify=verify)
        self._contexts = self._table(CONTEXTS, verify=verify)
        self._names = self._table(VOCABULARY, verify=verify)
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
        self.count, self.density, self.max = (_array(numbers[name]) for name in ("count", "density", "max"))
        if not np.array_equal(_array(numbers["feature"]), np.arange(description.d_sae)):
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
            with self._reading(FEATURES):
                table = rows.take(low, min(_AT_ONCE, end - low))
            if not has_values(table):
                raise unsound(self.path / FEATURES)
            some = table.to_pylist()
            for row in some:  # contexts are sorted by feature, so that one walk through them meets all
                known = is_feature(row, self.description, self._contexts.metadata.num_rows)
                if not known or (row["contexts"] and row["contexts_begin"] < read):
                    raise unsound(self.path / FEATURES)
                read = row["contexts_begin"] + row["contexts"] if row["contexts"] else read
            places = [(row["contexts_begin"], row["contexts"]) for row in some if row["contexts"]]
            with self._reading(CONTEXTS):
                if contexts is None and places:
                    contexts = RowStream(self._contexts, places[0][0])
                pieces = [contexts.take(*place) for place in places if contexts is not None]
                table = pyarrow.concat_tables([self._contexts.schema_arrow.empty_table(), *pieces]).combine_chunks()
            yield from self._stored(some, table, per_band)

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
        with self._reading(FEATURES):
            table = self._features.read(columns=list(columns))
        if not has_values(table):
            raise unsound(self.path / FEATURES)
        return table

    def context_batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Columns of all contexts as pyarrow record batches, in order; `schema.context_schema` names them.

        >>> sum(len(batch) for batch in open_store(store_path).context_batches(["feature"])) > 150
        True
        """
        with self._reading(CONTEXTS):
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
            kept = of_each_band(feature, _array(contexts["band"]), per_band)
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
        with self._reading(name):
            found = table.read_row_groups(range(first, last + 1), columns=columns)
            found = found.slice(begin - int(starts[first]), count)
            if not has_values(found):
                raise unsound(self.path / name)
            return found

    @functools.cached_property
    def _vocabulary(self) -> Mapping[int, str]:
        with self._reading(VOCABULARY):
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

    def _table(self, name: str, *, verify: bool) -> Any:
        import pyarrow.parquet

        record = self.description.files[name]
        try:
            check_file(self.path, name, record, verify=verify)
        except ValueError as error:
            raise ValueError(str(error).replace("the manifest's", f"that of {STORE}")) from error
        if footer_sha256(self.path / name) != record.footer_sha256:
            raise altered(self.path / name)
        with self._reading(name):
            return pyarrow.parquet.ParquetFile(self.path / name, page_checksum_verification=True)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Let an error of pyarrow in the block say that the file was altered."""
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the content
                raise
            raise altered(self.path / name) from error


def altered(path: Path) -> ValueError:
    """The error of a file that is not as it was written.

    >>> altered(Path("store/features.parquet"))
    ValueError('store/features.parquet was altered since the store was built; copy or build the store again')
    """
    return ValueError(f"{path} was altered since the store was built; copy or build the store again")


def unsound(path: Path) -> ValueError:
    """The error of a table whose rows no store has, though its hash is right.

    >>> unsound(Path("store/features.parquet"))
    ValueError('store/features.parquet has rows that no store has; build the store again')
    """
    return ValueError(f"{path} has rows that no store has; build the store again")


def footer_sha256(path: Path) -> str:
    """The sha256 of the footer of a Parquet file, which says where and what everything in it is.

    Raises:
        ValueError: the file has no footer.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > size - 12:
            raise altered(path)
        file.seek(size - 8 - length)
        return hashlib.sha256(file.read(length)).hexdigest()


@functools.lru_cache(maxsize=8)
def _labels(path: Path, d_sae: int, _now: Identity | None) -> tuple[Labels, dict[int, str]]:
    """Labels and their sources. A line may name its source; without one, a person wrote it."""
    lines = label_lines(path, d_sae)
    sources = {
        feature: line["source"].strip() if isinstance(line.get("source"), str) and line["source"].strip() else "person"
        for feature, line in lines.items()
    }
    return Labels({feature: line["label"] for feature, line in lines.items()}, source=str(path)), sources


def _array(column: Any) -> NDArray[Any]:
    """A column of numbers; pyarrow's own way to numpy imports pandas, which takes longer than all else."""
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])
