"""Stored activations as the source of an extraction: an SAE encodes them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.activations.documents import Source as Where
from sae_runtime.activations.stored import Activations, check_source, open_activations
from sae_runtime.bundle.folder import WEIGHTS, BundleError
from sae_runtime.core.features import Features, concatenate
from sae_runtime.extraction.column_kinds import Kind, whole
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan
from sae_runtime.sae import SAE

PART = 65_536  # rows of a part
CHUNK = 4_096  # rows that are read and encoded at once


def encoded(sae: SAE, activations: Activations, begin: int, end: int) -> Features:
    """The features of the rows from begin to end.

    Raises:
        ValueError: a row cannot be encoded; the message names the activations.
    """
    try:
        return sae.encode(activations.slice(begin, end))
    except BundleError:  # no row is at fault
        raise
    except ValueError as error:
        if str(error).startswith(str(activations.path)):  # it names the row already
            raise
        raise ValueError(f"{activations.path}, from row {begin} on: {error}") from error  # it counts rows from there


def origin(sae: SAE, activations: Activations) -> dict[str, Any]:
    """What features say of the SAE and the activations that they come from."""
    manifest = sae.manifest
    return {
        "architecture": dataclasses.asdict(manifest.architecture),
        "allocation": manifest.allocation and dataclasses.asdict(manifest.allocation),
        "model": manifest.model or activations.model,
        "hook": manifest.hook or activations.hook,
        "weights_sha256": manifest.files[WEIGHTS].sha256,
    }


class ArraySource:
    """Rows of activations, which an SAE encodes.

    Args:
        sae: the SAE.
        activations: stored ones, or their path.
        any_source: accept activations of another model or hook than those the SAE was fitted on.
        licence: of the texts behind them, to be kept beside each document.
        part: rows from which on a part ends.

    Raises:
        ValueError: the activations have another d_in or source.
    """

    def __init__(
        self,
        sae: SAE,
        activations: Activations | str | Path,
        *,
        any_source: bool = False,
        licence: str | None = None,
        part: int = PART,
    ) -> None:
        self.sae, self.licence, self.part = sae, licence, part
        self.activations = activations if isinstance(activations, Activations) else open_activations(activations)
        check_source(self.activations, sae.manifest, any_source=any_source)
        if not len(self.activations):
            raise ValueError(f"{self.activations.path} holds no rows; name activations that hold some")
        documents = self.activations.documents
        self._by_document = documents is not None and not (np.diff(documents) < 0).any()
        self._where: dict[int, Where] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "activations": self.activations.path.absolute(), "_where": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, activations=open_activations(state["activations"]))

    def plan(self) -> Plan:
        """As Source."""
        parts = []
        for number, (begin, end) in enumerate(self._cuts()):
            doc = self._doc(begin, end)
            parts.append(
                Part(
                    number=number,
                    first=int(doc[0]) if len(doc) else 0,
                    documents=len(np.unique(doc)) if self._by_document else 0,
                    sha256=self._sha256(begin, end),
                    begin=begin,
                    end=end,
                )
            )
        return Plan(self._facts(sum(part.documents for part in parts)), tuple(parts))

    def rows(self, part: Part, encode: Callable[[Part], Features] | None = None) -> PartRows:
        """As Source; `encode` gives the features of a part, None: those by the served rule."""
        if self._sha256(part.begin, part.end) != part.sha256:
            raise ValueError(
                f"{self.activations.path}: rows {part.begin} to {part.end} changed since the plan was made; extract "
                "into another folder, or with --force"
            )
        features = (encode or self._served)(part)
        rows = part.end - part.begin
        positions, tokens = self.activations.positions, self.activations.tokens
        doc, span = self._doc(part.begin, part.end), slice(part.begin, part.end)
        return PartRows(
            features,
            doc=doc,
            pos=(np.arange(part.begin, part.end) if positions is None else positions[span]).astype(np.int32),
            own=np.ones(rows, np.bool_),
            token=None if tokens is None else tokens[span],
            documents=self._columns(doc) if self._by_document else None,
        )

    def vocabulary(self) -> None:
        """As Source: activations do not know the names of their tokens."""

    def _served(self, part: Part) -> Features:
        begins = range(part.begin, part.end, CHUNK)
        found = [encoded(self.sae, self.activations, begin, min(begin + CHUNK, part.end)) for begin in begins]
        return concatenate(found, self.sae.d_sae, (part.end - part.begin,))

    def _doc(self, begin: int, end: int) -> Any:
        documents = self.activations.documents
        return np.zeros(end - begin, np.int32) if documents is None else documents[begin:end]

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """The first row of each part and the one after its last; a document is not cut."""
        begin, rows, documents = 0, len(self.activations), self.activations.documents
        while begin < rows:
            end = min(begin + self.part, rows)
            if self._by_document and documents is not None:
                end = int(np.searchsorted(documents, documents[end - 1], side="right"))
            yield begin, end
            begin = end

    def _sha256(self, begin: int, end: int) -> str:
        """Of rows, with their origins."""
        digest, known = hashlib.sha256(), self.activations
        for first in range(begin, end, CHUNK):
            digest.update(known.slice(first, min(first + CHUNK, end)).data)
        for array in (known.documents, known.positions, known.tokens):
            digest.update(b"" if array is None else np.ascontiguousarray(array[begin:end]).data)
        if self._by_document:
            for number in np.unique(self._doc(begin, end)).tolist():
                digest.update(repr(self._sources.get(number)).encode())
        return digest.hexdigest()

    @property
    def _sources(self) -> dict[int, Where]:
        if self._where is None:
            self._where = dict(self.activations.sources())
        return self._where

    def _columns(self, doc: Any) -> dict[str, Any]:
        numbers = np.unique(doc)
        where = [self._sources.get(number) for number in numbers.tolist()]
        columns: dict[str, Any] = {
            "doc": numbers,
            "file": [one and whole(one.file) for one in where],
            "row": [None if one is None else one.row for one in where],
            "id": [None if one is None else one.id for one in where],
        }
        return columns if self.licence is None else {**columns, "licence": [self.licence] * len(numbers)}

    def _facts(self, documents: int) -> dict[str, Any]:
        known, ids = self.activations, Kind()
        for one in self._sources.values():
            ids.see(one.id)
        return {
            **origin(self.sae, known),
            "sae": None,
            "d_sae": self.sae.d_sae,
            "source": {"activations": str(known.path), "rows": len(known)},
            "columns": {"id": ids.name} if self._by_document else {},
            "licence": self.licence,
            "part": self.part,
            "documents": documents if self._by_document else None,
        }
