"""Exact counts of rows and documents, for the description of a store."""

from collections import Counter
from typing import Any

import numpy as np

from sae_runtime.core.features import Features

LISTED = 1000  # files, and licences, of which a store tells the number of documents


class Counts:
    """Counts what `add_rows` and `add_documents` are given.

    Attributes:
        active: number of rows with 0, 1, 2, ... active features, int64.
    """

    def __init__(self) -> None:
        self.active = np.zeros(1, np.int64)
        self._documents: dict[str, Counter[str | None]] = {"file": Counter(), "licence": Counter()}
        self._any = False

    def add_rows(self, features: Features) -> None:
        """Count the active features of rows."""
        counted = np.bincount(np.diff(features.indptr), minlength=len(self.active))
        counted[: len(self.active)] += self.active
        self.active = counted

    def add_documents(self, documents: Any) -> None:
        """Count the documents of an Arrow table by their files and licences."""
        self._any = True
        for name, counter in self._documents.items():
            if name in documents.column_names:
                for each in documents[name].value_counts().to_pylist():
                    counter[each["values"]] += each["counts"]
            else:
                counter[None] += len(documents)

    def most(self, column: str, other: str | None = None) -> dict[str, int] | None:
        """Number of documents of each value of a column, at most LISTED values, the largest numbers first.

        Args:
            column: "file" or "licence".
            other: the value of documents that have none.

        Returns:
            The numbers; None where there are no documents.

        >>> Counts().most("file")
        """
        if not self._any:
            return None
        counter: Counter[str] = Counter()
        for value, count in self._documents[column].items():
            if (known := other if value is None else str(value)) is not None:
                counter[known] += count
        return dict(sorted(counter.items(), key=lambda each: (-each[1], each[0]))[:LISTED])
