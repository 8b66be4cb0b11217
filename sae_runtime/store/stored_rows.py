"""Rows of `features.parquet` as features."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_runtime.store.records import Band, Context, StoredFeature


def stored_feature(
    row: Mapping[str, Any], label: str | None, source: str | None, contexts: list[Context]
) -> StoredFeature:
    """The feature of a row, which is sound.

    Args:
        row: of the table, as a dict.
        label: of the feature.
        source: of the label.
        contexts: of the feature.
    """
    bins = len(row["histogram"])
    return StoredFeature(
        feature=row["feature"],
        label=label,
        label_source=source,
        density=row["density"],
        count=row["count"],
        mean=row["mean"],
        max=row["max"],
        histogram=(row["max"] * np.arange(bins + 1) / bins, np.array(row["histogram"], np.int64)),
        bands=[Band(**band) for band in row["bands"]],
        top_tokens=[(each["text"], each["count"], each["mean"]) for each in row["top_tokens"]],
        neighbours=_pairs(row["neighbours"], "feature", "value"),
        together=_pairs(row["together"], "feature", "value"),
        promoted=_pairs(row["promoted"], "text", "logit"),
        suppressed=_pairs(row["suppressed"], "text", "logit"),
        contexts=contexts,
    )


def _pairs(rows: list[dict[str, Any]] | None, name: str, value: str) -> list[Any] | None:
    return None if rows is None else [(row[name], row[value]) for row in rows]
