"""The tables of a store while they are written: features in order, and their contexts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.bundle.token_logits import TokenLogits
from sae_runtime.store.choosing import Chosen
from sae_runtime.store.matches import Matches
from sae_runtime.store.names_of_tokens import readable
from sae_runtime.store.relatives import Relatives
from sae_runtime.store.rows import Rows
from sae_runtime.store.schema import CONTEXTS, FEATURES, VOCABULARY, context_schema, feature_schema
from sae_runtime.store.surroundings import Peaks, as_table, peaks, values_around
from sae_runtime.store.tallies import Tally

_FEATURES_AT_ONCE = 256  # a row group
_TOKENS_AT_ONCE = 1 << 24  # whose values are looked up
_CONTEXTS_AT_ONCE = 1 << 13  # that are made into a table
_GROUP = 1 << 10  # contexts of a row group


class StoreTables:
    """Writes the tables of a store, feature by feature.

    Attributes:
        folder: that the tables are in.
        contexts: number of contexts so far.
        active: number of features so far that are active.
    """

    def __init__(
        self,
        folder: Path,
        rows: Rows,
        vocabulary: Mapping[int, str],
        relatives: tuple[Relatives | None, Relatives | None],
        logits: TokenLogits | None,
        *,
        licence: str | None,
        bins: int,
    ) -> None:
        """Begin the tables, and write the vocabulary."""
        self.folder, self._rows, self._licence = folder, rows, licence
        self._names = readable(vocabulary)
        self._neighbours, self._together = relatives
        self._logits = logits
        self._features = _writer(folder / FEATURES, feature_schema())
        self._contexts = _writer(folder / CONTEXTS, context_schema(rows.id_type))
        self._waiting: list[dict[str, Any]] = []
        self._tables: list[Any] = []
        self.contexts = self.active = 0

    def __enter__(self) -> "StoreTables":
        return self

    def __exit__(self, *_: object) -> None:
        self._features.close()
        self._contexts.close()

    def put(self, low: int, tally: Tally, chosen: Chosen, chunks: Iterable[Matches], context: int) -> None:
        """Write the features from `low` on, and their contexts of so many tokens."""
        feature, slot = np.nonzero(chosen.row >= 0)
        row, value = chosen.row[feature, slot], chosen.value[feature, slot]
        them = peaks((feature + low).astype(np.int32), chosen.band[slot], row, value, self._rows, context)
        begins = self.contexts + np.searchsorted(feature, np.arange(len(tally.count) + 1))
        step = max(_TOKENS_AT_ONCE // context, 1)
        for begin in range(0, len(them), step):
            self._put_contexts(them[begin : begin + step], chunks)
        for place, tokens in enumerate(tally.top_tokens()):
            self._waiting.append(self._feature(low + place, place, tally, chosen, tokens, begins))
            if len(self._waiting) == _FEATURES_AT_ONCE:
                self._put_features()
        self.active += int(np.count_nonzero(tally.count))

    def done(self) -> None:
        """Write what is left, and the vocabulary."""
        import pyarrow as pa

        if self._waiting:
            self._put_features()
        if self._tables:
            self._contexts.write_table(pa.concat_tables(self._tables), row_group_size=_GROUP)
        names = {"token": pa.array(self._names, pa.int32()), "text": pa.array(self._names.values(), pa.string())}
        with _writer(self.folder / VOCABULARY, pa.schema([("token", pa.int32()), ("text", pa.string())])) as writer:
            writer.write_table(pa.table(names))
        self.__exit__()

    def _put_contexts(self, them: Peaks, chunks: Iterable[Matches]) -> None:
        import pyarrow as pa

        values = values_around(them, chunks, len(self._rows.rows))
        ends = np.concatenate([[0], np.cumsum(them.end - them.begin)])
        for begin in range(0, len(them), _CONTEXTS_AT_ONCE):
            some = them[begin : begin + _CONTEXTS_AT_ONCE]
            inside = slice(ends[begin], ends[begin + len(some)])
            self._tables.append(as_table(some, values[inside], self._rows, self._licence))
            if sum(map(len, self._tables)) >= _CONTEXTS_AT_ONCE:
                self._contexts.write_table(pa.concat_tables(self._tables), row_group_size=_GROUP)
                self._tables = []
        self.contexts += len(them)

    def _put_features(self) -> None:
        import pyarrow as pa

        self._features.write_table(pa.Table.from_pylist(self._waiting, feature_schema()))
        self._waiting = []

    def _feature(
        self, feature: int, place: int, tally: Tally, chosen: Chosen, tokens: list[tuple[int, int, float]], begins: Any
    ) -> dict[str, Any]:
        count = int(tally.count[place])
        bands = zip(chosen.edges[place].tolist(), chosen.sizes[place].tolist(), strict=True)
        return {
            "feature": feature,
            "count": count,
            "density": count / max(len(self._rows.rows), 1),
            "mean": float(tally.sum[place]) / count if count else 0.0,
            "max": float(tally.max[place]),
            "histogram": tally.histogram[place].tolist(),
            "bands": [{"low": low, "high": high, "count": size} for (low, high), size in bands] if count else [],
            "top_tokens": [
                {"token": token, "text": self._name(token), "count": number, "mean": mean}
                for token, number, mean in tokens
            ],
            "neighbours": _pairs(self._neighbours, feature),
            "together": _pairs(self._together, feature),
            "promoted": self._of_logits("promoted", feature),
            "suppressed": self._of_logits("suppressed", feature),
            "contexts_begin": int(begins[place]),
            "contexts": int(begins[place + 1] - begins[place]),
        }

    def _name(self, token: int) -> str:
        return self._names.get(token, str(token))

    def _of_logits(self, which: str, feature: int) -> list[dict[str, Any]] | None:
        if self._logits is None:
            return None
        tokens, logits = (getattr(self._logits, f"{which}_{what}")[feature].tolist() for what in ("tokens", "logits"))
        return [
            {"token": token, "text": self._name(token), "logit": logit}
            for token, logit in zip(tokens, logits, strict=True)
        ]


def _pairs(relatives: Relatives | None, feature: int) -> list[dict[str, Any]] | None:
    return None if relatives is None else [{"feature": other, "value": value} for other, value in relatives[feature]]


def _writer(path: Path, schema: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)
