"""Texts as the source of an extraction: a deployed model's tokenizer and graph turn their documents into rows."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sae_runtime.activations.documents import Document, Place, documents, files_of
from sae_runtime.activations.reading import STDIN, Entry, Reading
from sae_runtime.bundle.external_data import check_external
from sae_runtime.bundle.parts import read_manifest, record
from sae_runtime.core.features import Features, concatenate
from sae_runtime.deployed.reading_features import Lowered
from sae_runtime.extraction.column_kinds import Kind, whole
from sae_runtime.extraction.part_rows import PartRows
from sae_runtime.extraction.plan import Part, Plan
from sae_runtime.model import Model, load_model
from sae_runtime.text.tokens import Tokens, windows_of

PART = 1 << 18  # characters of a part: about 60,000 tokens, so that batches have little padding
CONTEXT = 128  # tokens of a window, as in harvest
_OF_AN_ID = 4  # characters for which a token id counts
_COLUMNS = ("doc", "file", "row", "id", "tokens", "licence", "text", "indices", "values")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")


Read = Callable[[Sequence[Tokens], Sequence[object]], Features]
"""Gives the features of the tokens of windows, one after the other: (windows, the name of each one's document)."""


class TextSource:
    """Documents of files, whose tokens a deployed model reads.

    Args:
        model: a deployed model, or its path.
        texts: files and folders, as `activations.documents` reads them.
        sae: the SAE; None: the model's only one.
        reading: where the documents are in the files, and which columns are kept.
        context: largest number of tokens of a window, special ones included; None: 128, or fewer where the model reads
            no more.
        special: whether special tokens have rows.
        licence: of the texts, to be kept beside each. A column `licence` of the files may be kept instead.
        keep_text: whether texts are kept.
        part: characters from which on a part ends.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model has no such SAE, a setting cannot be used, or the texts are standard input.
    """

    def __init__(
        self,
        model: Model | str | Path,
        texts: Sequence[Path],
        *,
        sae: str | None = None,
        reading: Reading | None = None,
        context: int | None = None,
        special: bool = False,
        licence: str | None = None,
        keep_text: bool = True,
        part: int = PART,
    ) -> None:
        self.model = model if isinstance(model, Model) else load_model(model)
        self.sae = self.model.reads(sae)
        self.texts, self.reading, self.special = tuple(texts), reading or Reading(), special
        self.licence, self.keep_text, self.part = licence, keep_text, part
        self.context = self.model.window(min(CONTEXT, self.model.window()) if context is None else context)
        if STDIN in self.texts:
            raise ValueError(
                "- is standard input, which cannot be read again when an extraction goes on; write it to a file"
            )
        kept = self.reading.columns
        own = set(_COLUMNS) - ({"licence"} if licence is None else set())  # files may give each text a licence
        if taken := [name for name in kept if name in own or kept.count(name) > 1]:
            hint = "give it as --id-field" if taken[0] == "id" else "rename it"
            raise ValueError(
                f"{taken[0]!r} cannot be a column that is kept, since features have a column of this name; {hint}"
            )
        documents(self.texts, self.reading)  # which refuses what cannot be read
        self._home = Path.cwd()
        self._next: tuple[int, Iterator[Document]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_next": None}

    def plan(self) -> Plan:
        """As Source."""
        parts: list[Part] = []
        kinds = {name: Kind() for name in self._kept}
        first, size, digest = None, 0, hashlib.sha256()
        number = -1

        def close(end: int) -> None:
            nonlocal first, size, digest
            if first is not None:
                at, begin = first
                parts.append(
                    Part(
                        number=len(parts),
                        first=begin,
                        documents=end - begin,
                        sha256=digest.hexdigest(),
                        file=at.file,
                        row=at.entry.row,
                        byte=at.entry.byte,
                    )
                )
            first, size, digest = None, 0, hashlib.sha256()

        for number, document in enumerate(self._read(Place())):
            first = first or (document.place, number)
            digest.update(_content(document))
            for kind, value in zip(kinds.values(), self._values(document), strict=True):
                kind.see(value)
            size += len(document) * (1 if isinstance(document.content, str) else _OF_AN_ID)
            if size >= self.part:
                close(number + 1)
        close(number + 1)
        if not parts:
            raise ValueError(f"{', '.join(map(str, self.texts))} holds no text; name files that hold some")
        return Plan(self._facts({name: kind.name for name, kind in kinds.items()}, number + 1), tuple(parts))

    def rows(self, part: Part, read: Read | None = None) -> PartRows:
        """As Source; `read` gives the features of the windows, None: those by the served rule."""
        found = self._documents(part)
        cut = [self._windows(tokens) for tokens in self._tokens(found)]
        windows = [window for own in cut for window in own]
        names = [document.source for document, own in zip(found, cut, strict=True) for _ in own]
        features = (read or self.read)(windows, names)
        of_document = [part.first + number for number, own in enumerate(cut) for w in own for _ in range(len(w))]
        doc = np.array(of_document, np.int32)

        def joined(name: str) -> Any:
            return np.concatenate([getattr(w, name) for w in windows]) if windows else np.zeros(0, np.int64)

        own = joined("kept").astype(np.bool_)
        offsets = joined("offsets").reshape(-1, 2).astype(np.int32)
        columns = {"doc": doc, "pos": joined("positions").astype(np.int32), "token": joined("ids").astype(np.int32)}
        if self.reading.ids_field is None:
            columns |= {"begin": offsets[:, 0], "end": offsets[:, 1]}
        if not self.special:
            kept = np.flatnonzero(own)
            features, own = features.take(kept), own[kept]
            columns = {name: array[kept] for name, array in columns.items()}
        return PartRows(features, own=own, documents=self._columns(part, found), **columns)

    def read(self, windows: Sequence[Tokens], names: Sequence[object], lowered: Lowered | None = None) -> Features:
        """The features of the tokens of windows, one window after the other.

        Args:
            windows: of documents.
            names: of the document of each window, for messages.
            lowered: how features below the threshold are read.
        """
        sae = self.sae.name
        found = self.model.read([window.ids for window in windows], texts=names, sae=sae, lowered=lowered)
        return concatenate([one[sae] for one in found], self.sae.d_sae, (sum(map(len, windows)),))

    def vocabulary(self) -> list[str | None]:
        """As Source."""
        tokenizer = self.model.tokenizer
        return [tokenizer.token(number) for number in range(tokenizer.size)]

    @property
    def _kept(self) -> tuple[str, ...]:
        """Columns of the input, with the names of documents."""
        return ("id", *self.reading.columns) if self.reading.id_field else self.reading.columns

    def _values(self, document: Document) -> tuple[Any, ...]:
        return (document.source.id, *document.columns) if self.reading.id_field else document.columns

    def _read(self, start: Place) -> Iterator[Document]:
        """The documents from a place on, with files named as they were given, whatever this process' folder is."""
        if Path.cwd() == self._home:
            return documents(self.texts, self.reading, start=start)
        home = f"{self._home}{os.sep}"
        found = documents([self._home / path for path in self.texts], self.reading, start=start)
        return (replace(one, source=replace(one.source, file=one.source.file.removeprefix(home))) for one in found)

    def _documents(self, part: Part) -> list[Document]:
        """The documents of a part; the ones behind it are ready to be read next."""
        if self._next is None or self._next[0] != part.number:
            start = Place(part.file, Entry(part.row, part.byte))
            self._next = part.number, self._read(start)
        stream, digest = self._next[1], hashlib.sha256()
        self._next = None
        found = list(islice(stream, part.documents))
        for document in found:
            digest.update(_content(document))
        if digest.hexdigest() != part.sha256:
            where = f"from {found[0].source} on" if found else f"{part.documents} documents"
            raise ValueError(
                f"the texts of part {part.number} ({where}) changed since the plan was made; extract into another "
                "folder, or with --force"
            )
        self._next = part.number + 1, stream
        return found

    def _tokens(self, found: Sequence[Document]) -> list[Tokens]:
        """The tokens of documents; of ids, those that the tokenizer would have around them."""
        tokenizer = self.model.tokenizer
        if self.reading.ids_field is None:
            return tokenizer.encode([str(document.content) for document in found])
        made = []
        for document in found:
            try:
                made.append(tokenizer.given(np.asarray(document.content)))
            except ValueError as error:
                raise ValueError(f"{document.source}: {error}") from error
        return made

    def _windows(self, tokens: Tokens) -> list[Tokens]:
        """As harvest cuts them: a text without tokens of its own has none."""
        return [] if tokens.special.all() else list(windows_of(tokens, self.context))

    def _columns(self, part: Part, found: Sequence[Document]) -> dict[str, Any]:
        columns: dict[str, Any] = {
            "doc": np.arange(part.first, part.first + part.documents, dtype=np.int32),
            "file": [whole(document.source.file) for document in found],
            "row": [document.source.row for document in found],
            "id": [document.source.id for document in found],
        }
        for number, name in enumerate(self.reading.columns):
            columns[name] = [document.columns[number] for document in found]
        if self.licence is not None:
            columns["licence"] = [self.licence] * len(found)
        if self.keep_text and self.reading.ids_field is None:
            columns["text"] = [document.content for document in found]
        return columns

    def _facts(self, columns: dict[str, str], number: int) -> dict[str, Any]:
        layout, reading = self.model.layout, self.reading
        graph = layout.features or layout.graph
        manifest = read_manifest(self.sae.bundle) if self.sae.bundle is not None else None
        home = layout.graph.parent
        weights = {path.name: record(Path(path)).sha256 for path in sorted(check_external(graph))}
        tokenizer = {n: record(layout.home / n).sha256 for n in _TOKENIZER if (layout.home / n).is_file()}
        files = [file for path in self.texts for file in files_of(path)]
        return {
            "model": (manifest and manifest.model) or home.resolve().name,
            "hook": self.sae.hook,
            "sae": self.sae.name,
            "d_sae": self.sae.d_sae,
            "architecture": manifest and dataclasses.asdict(manifest.architecture),
            "allocation": manifest and manifest.allocation and dataclasses.asdict(manifest.allocation),
            "weights_sha256": self.sae.spliced.weights,
            "graph_sha256": record(graph).sha256,
            "host_sha256": weights,
            "tokenizer_sha256": tokenizer,
            "source": {"files": [{"file": whole(str(file)), **dataclasses.asdict(record(file))} for file in files]},
            "document": reading.document,
            "text_field": reading.text_field,
            "ids_field": reading.ids_field,
            "id_field": reading.id_field,
            "columns": columns,
            "context": self.context,
            "special": self.special,
            "licence": self.licence,
            "keep_text": self.keep_text,
            "part": self.part,
            "documents": number,
        }


def _content(document: Document) -> bytes:
    """What decides the rows of a document, as bytes."""
    source, content = document.source, document.content
    body = content.encode() if isinstance(content, str) else content.tobytes()
    head = json.dumps([len(body), source.file, source.row, source.id, document.columns], default=str)
    return head.encode() + body
